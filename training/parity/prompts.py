"""The prompts of a comparison: rows with images and their answers, from the evaluation split or drawn."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import ExportRejected
from training.builtin.drawings import QUESTIONS, draw_many
from training.chat.encoding import Encoded, Encoder, Messages

MORE_TOKENS = 2
"""Of a request, than of a row: the line break that templates put after an answer, and the one that is generated."""

LONGEST = 2048
"""Tokens of a prompt with its answers: an engine that is asked for all of their probabilities has the logits of all of
them at once, 1.2 GB for a vocabulary of 151,936."""


@dataclass(frozen=True)
class Room:
    """What an engine takes in one request."""

    tokens: int
    """Its `max_model_len`."""

    images: int


@dataclass(frozen=True)
class Prompt:
    """A conversation with its answers."""

    item: str
    messages: Messages
    """Image paths are relative to `folder`."""

    folder: Path
    row: Encoded

    @property
    def images(self) -> list[str]:
        """Their paths."""
        return _images(self.messages)


def choose_prompts(data: Path, encoder: Encoder, count: int, room: Room) -> list[Prompt]:
    """Rows of a prepared data set's evaluation split, slice by slice in turn, those with images first.

    Args:
        data: Its folder.
        encoder: Of the base.
        count: At most so many.
        room: Rows that do not fit are passed over, and so are rows that a server would cut into other tokens.

    Raises:
        ExportRejected: No row can be compared.
    """
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    read = (Prompt(row["id"], row["messages"], data, _encode(row["messages"], data, encoder)) for row in _in_turn(rows))
    prompts = list(islice((prompt for prompt in read if _is_comparable(prompt, encoder, room)), count))
    if not prompts:
        raise ExportRejected(
            f"{data / 'eval.jsonl'}: none of {len(rows)} rows can be compared: they are longer than "
            f"{min(room.tokens, LONGEST)} tokens, show more than {room.images} images, or are cut into other tokens as "
            f"a whole; raise serving.max_model_len, or set export.parity.prompts to 0 to export unproven"
        )
    return prompts


def draw_prompts(folder: Path, encoder: Encoder, count: int) -> list[Prompt]:
    """Questions about drawn pictures, for a checkpoint without a data set; the pictures are written to `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    prompts = []
    each = -(-count // len(QUESTIONS))
    for i, drawing in enumerate(draw_many(dict.fromkeys(QUESTIONS, each), seed=0)[:count]):
        drawing.image.save(folder / "images" / f"drawn-{i}.png")
        question = [{"type": "image", "image": f"images/drawn-{i}.png"}, {"type": "text", "text": drawing.question}]
        answer = [{"type": "text", "text": drawing.answer}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompts.append(Prompt(f"drawn-{i}", messages, folder, _encode(messages, folder, encoder)))
    return prompts


def copy_images(prompts: Sequence[Prompt], folder: Path) -> None:
    """Put the prompts' images into a folder, under the same names."""
    for source, name in ((prompt.folder, name) for prompt in prompts for name in prompt.images):
        if source != folder:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def _in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    slices: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        slices[row["slice"]].append(row)
    in_turn = [row for turn in zip_longest(*slices.values()) for row in turn if row]
    return sorted(in_turn, key=lambda row: not _images(row["messages"]))


def _is_comparable(prompt: Prompt, encoder: Encoder, room: Room) -> bool:
    """Whether an engine takes it, and sees the same tokens in one piece that training sees in prompts and answers."""
    if len(prompt.row.input_ids) > min(room.tokens - MORE_TOKENS, LONGEST) or len(prompt.images) > room.images:
        return False
    segments = [text for text, _ in encoder.segments(prompt.messages)]
    whole, *parts = encoder.tokenizer(["".join(segments), *segments], add_special_tokens=False)["input_ids"]
    return list(chain(*parts)) == whole


def _encode(messages: Messages, folder: Path, encoder: Encoder) -> Encoded:
    images = []
    for name in _images(messages):
        with Image.open(folder / name) as image:
            images.append(image.convert("RGB"))
    return encoder.encode(messages, images)


def _images(messages: Messages) -> list[str]:
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
