"""One line of `data.jsonl`: chat messages with images by path. Reading it, and every reason to refuse it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from training.chat.pictures import Picture, Unusable, store_picture

Split = Literal["train", "eval", "test"]


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "image"]
    text: str | None = None
    image: str | None = None
    """Path relative to the file of rows."""


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str | tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content, always as parts."""
        return (Part(type="text", text=self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """All text of the turn."""
        return "".join(part.text or "" for part in self.parts)


class Line(BaseModel):
    """What a line may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    slice: str = "all"
    split: Split | None = None
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Row:
    """A usable row; its images are stored under their new names."""

    number: int
    """Line in the file it came from, from 1."""

    id: str
    slice: str
    split: Split | None
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]

    @property
    def question(self) -> str:
        """Digest of everything that is asked, images by their pixels: equal questions are equal."""
        turns = [(m.role, [p.text for p in m.parts]) for m in self.messages if m.role != "assistant"]
        asked = json.dumps([turns, [picture.pixels for picture in self.pictures]])
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].text

    def chat(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them; images point into the data set's folder."""
        names = iter(f"images/{picture.name}" for picture in self.pictures)
        return [{"role": m.role, "content": [_part(part, names) for part in m.parts]} for m in self.messages]

    def json(self) -> str:
        """The row as a line of the data set."""
        return json.dumps({"id": self.id, "slice": self.slice, "messages": self.chat()}, ensure_ascii=False)


def read_row(number: int, text: bytes, source: Path, images: Path, special: Set[str]) -> Row:
    """Check a line and store its images.

    Args:
        number: Its place in the file, from 1.
        text: The line.
        source: Folder that image paths start from.
        images: Folder to store images in.
        special: Control tokens of the model, which no text may contain.

    Raises:
        Unusable: With the reason.
    """
    line = _parse(text)
    _check_turns(line)
    _check_text(line, special)
    paths = [part.image for message in line.messages for part in message.parts if part.type == "image"]
    pictures = tuple(store_picture(_inside(source, path), images) for path in paths if path)
    return Row(number, line.id, line.slice, line.split, line.messages, pictures)


def _part(part: Part, names: Any) -> dict[str, Any]:
    return {"type": "image", "image": next(names)} if part.type == "image" else {"type": "text", "text": part.text}


def _parse(text: bytes) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = "not JSON" if first["type"] == "json_invalid" else "wrong fields"
        place = ".".join(str(p) for p in first["loc"])
        raise Unusable(reason, f"{place}: {first['msg']}" if place else first["msg"]) from None


def _check_turns(line: Line) -> None:
    roles = [message.role for message in line.messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != (["user", "assistant"] * len(talk))[: len(talk)] or talk[-1] != "assistant":
        raise Unusable("wrong turns", f"{line.id}: {' '.join(roles)}; user and assistant must alternate")
    if any(message.role == "assistant" and not message.text.strip() for message in line.messages):
        raise Unusable("empty answer", line.id)


def _check_text(line: Line, special: Set[str]) -> None:
    for message in line.messages:
        for part in message.parts:
            if (part.type == "image") != bool(part.image) or (part.type == "text") != (part.text is not None):
                raise Unusable("wrong fields", f"{line.id}: a {part.type} part needs {part.type} and nothing else")
            if part.type == "image" and message.role != "user":
                raise Unusable("image in an answer", line.id)
            if found := next((token for token in special if part.text and token in part.text), None):
                raise Unusable("control token in text", f"{line.id}: {found}")


def _inside(source: Path, path: str) -> Path:
    place = source / path
    if not place.resolve().is_relative_to(source.resolve()):
        raise Unusable("image outside the folder", path)
    return place
