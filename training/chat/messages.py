"""The one form of a chat row: messages with images where they are meant. Its fields, and every reason to refuse it."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from training.chat.rejects import Unusable

Split = Literal["train", "eval", "test"]


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "image"]
    text: str | None = None
    image: str | bytes | None = None
    """Path relative to the source's folder, `file://` or `data:` URI, or the image file's own bytes."""

    @model_validator(mode="before")
    @classmethod
    def _image_url(cls, value: Any) -> Any:
        """OpenAI's requests write images as `{"type": "image_url", "image_url": {"url": ...}}`."""
        if isinstance(value, dict) and value.get("type") == "image_url":
            url = value.get("image_url")
            return {"type": "image", "image": url.get("url") if isinstance(url, dict) else url}
        return value


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
    """What a row may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = None
    """Rows without one are named by their place."""

    slice: str = "all"
    split: Split | None = None
    messages: tuple[Message, ...]


def parse_line(fields: Any, special: Set[str]) -> Line:
    """Check a row's fields, turns and texts.

    Args:
        fields: As they were read.
        special: Control tokens of the model, which no text may contain.

    Raises:
        Unusable: With the reason.
    """
    try:
        line = Line.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        raise Unusable("wrong fields", f"{place}: {first['msg']}" if place else first["msg"]) from None
    _check_turns(line)
    _check_unicode(line)
    for message in line.messages:
        for part in message.parts:
            _check_part(part, message.role, special)
    return line


def _check_turns(line: Line) -> None:
    roles = [message.role for message in line.messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != (["user", "assistant"] * len(talk))[: len(talk)] or talk[-1] != "assistant":
        raise Unusable("wrong turns", f"{' '.join(roles)}; user and assistant must alternate, an answer comes last")
    if any(message.role == "assistant" and not message.text.strip() for message in line.messages):
        raise Unusable("empty answer", "an answer without text teaches nothing")


def _check_unicode(line: Line) -> None:
    """JSON can escape half a surrogate pair, which no tokenizer and no file takes."""
    parts = [part for message in line.messages for part in message.parts]
    texts = [line.id, line.slice, *(part.text for part in parts), *(part.image for part in parts)]
    for text in (text for text in texts if isinstance(text, str)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unusable("wrong fields", f"{text[:40]!r} is not Unicode: {error.reason}") from None


def _check_part(part: Part, role: str, special: Set[str]) -> None:
    if (part.type == "image") != bool(part.image) or (part.type == "text") != (part.text is not None):
        raise Unusable("wrong fields", f"a part of type {part.type} needs {part.type} and nothing else")
    if part.type == "image" and role != "user":
        raise Unusable("image in an answer", f"an image in a turn of {role}; only user turns may show one")
    if found := next((token for token in special if part.text and token in part.text), None):
        raise Unusable("control token in text", found)
