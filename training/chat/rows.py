"""A usable row: one record of a source, checked, its images stored under the digest of their pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from training.chat.messages import Message, Part, Split, parse_line
from training.chat.pictures import Picture, store_picture
from training.chat.references import read_image
from training.chat.rejects import Origin, Unusable
from training.formats.record import Record, Style
from training.formats.sharegpt import is_sharegpt, to_messages

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves alone and that end a line to `str.splitlines`."""


@dataclass(frozen=True)
class Row:
    """A usable row; its images are stored under their new names."""

    origin: Origin
    id: str
    slice: str
    split: Split | None
    messages: tuple[Message, ...]
    """Images by path in the data set's folder."""

    pictures: tuple[Picture, ...]
    style: Style
    """How it was written."""

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """For each user turn, a digest of everything asked up to it, images by their pixels: equal if the same."""
        pixels = [picture.pixels for picture in self.pictures]
        digests: list[str] = []
        turns: list[tuple[str, list[str | None]]] = []
        shown = 0
        for message in self.messages:
            if message.role == "assistant":
                continue
            turns.append((message.role, [part.text for part in message.parts]))
            shown += sum(part.type == "image" for part in message.parts)
            if message.role == "user":
                digests.append(hashlib.sha256(json.dumps([turns, pixels[:shown]]).encode()).hexdigest())
        return tuple(digests)

    @property
    def question(self) -> str:
        """Digest of everything that is asked."""
        return self.asked[-1]

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers, in order."""
        return tuple(message.text for message in self.messages if message.role == "assistant")

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.answers[-1]

    def chat(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them; images point into the data set's folder."""
        return [{"role": m.role, "content": [_part(part) for part in m.parts]} for m in self.messages]

    def json(self) -> str:
        """The row as a line of the data set."""
        text = json.dumps({"id": self.id, "slice": self.slice, "messages": self.chat()}, ensure_ascii=False)
        return text.translate(LINE_ENDS)


def read_row(record: Record, source: Path, images: Path, special: Set[str], style: Style | None = None) -> Row:
    """Check a record and store its images.

    Args:
        record: As it was read.
        source: Folder that image paths start from, absolute.
        images: Folder to store images in.
        special: Control tokens of the model, which no text may contain.
        style: How it is written; None recognises it.

    Raises:
        Unusable: With the reason.
    """
    fields = record.fields()
    style = style or ("sharegpt" if is_sharegpt(fields) else "messages")
    line = parse_line(to_messages(fields) if style == "sharegpt" else fields, special)
    if line.split and record.split and line.split != record.split:
        raise Unusable("wrong fields", f"split is {line.split}, and {record.origin.file} holds {record.split}")
    references = [part.image for message in line.messages for part in message.parts if part.image]
    pictures = tuple(store_picture(read_image(reference, source), images) for reference in references)
    messages = _stored(line.messages, pictures)
    name = str(record.origin) if line.id is None else line.id
    return Row(record.origin, name, line.slice, line.split or record.split, messages, pictures, style)


def _stored(messages: tuple[Message, ...], pictures: tuple[Picture, ...]) -> tuple[Message, ...]:
    """The messages with the stored names instead of the references, which may be as large as the images."""
    names = iter(f"images/{picture.name}" for picture in pictures)

    def stored(part: Part) -> Part:
        return part if part.type == "text" else Part(type="image", image=next(names))

    return tuple(Message(role=m.role, content=tuple(stored(part) for part in m.parts)) for m in messages)


def _part(part: Part) -> dict[str, Any]:
    return {"type": "image", "image": part.image} if part.type == "image" else {"type": "text", "text": part.text}
