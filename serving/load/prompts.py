"""Requests for the load: real questions, and no picture twice, so that no cache answers for the engine."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pipelines.errors import BadInput
from serving.questions import Question

Content = list[dict[str, Any]]
"""Of one user message, in OpenAI's form."""

AT_A_TIME = 8
"""Requests that are made together."""

SCATTER = 2_654_435_761
"""Odd, so that different numbers have different colours; large, so that neighbours are not alike (2^32 / golden ratio:
Knuth, The Art of Computer Programming 3, 6.4)."""


@dataclass(frozen=True)
class Prompt:
    """What one request shows and asks."""

    images: tuple[Path, ...]
    text: str


def prompts_of(questions: Sequence[Question]) -> tuple[Prompt, ...]:
    """The questions that show a picture, each as one message.

    Raises:
        BadInput: None does.
    """
    found = tuple(
        Prompt(tuple(question.folder / image for image in question.images), _text(question))
        for question in questions
        if question.images
    )
    if not found:
        raise BadInput("no question shows a picture; load is measured with pictures, so name a data set that has some")
    return found


def _text(question: Question) -> str:
    parts = (part for message in question.messages for part in message["content"])
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


class Supply:
    """Requests without end, the prompts in turn; every picture has a corner of a colour that no other has.

    Engines keep what they computed for a picture by its pixels, and the start of a prompt by its tokens.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = cycle(prompts)
        self._numbers = count()

    def take(self, requests: int) -> Iterator[Content]:
        """The next ones, in order; they are made by several threads, as to encode a picture takes its time.

        Only a few are in memory at a time: a run has hundreds, of megabytes each.
        """
        prompts = islice(self._prompts, requests)
        with ThreadPoolExecutor() as threads:
            while some := [(prompt, self._numbered(prompt)) for prompt in islice(prompts, AT_A_TIME)]:
                yield from threads.map(_content, some)

    def _numbered(self, prompt: Prompt) -> list[int]:
        """A number for each of its pictures."""
        return [next(self._numbers) for _ in prompt.images]

    def write(self, path: Path, requests: int) -> None:
        """The next ones as the data set `custom_image` of vLLM's client."""
        with path.open("w") as file:
            for content in self.take(requests):
                file.write(json.dumps({"content": content}) + "\n")


def _content(wanted: tuple[Prompt, list[int]]) -> Content:
    prompt, numbers = wanted
    pictures = [_marked(path, number) for path, number in zip(prompt.images, numbers, strict=True)]
    return [
        *({"type": "image_url", "image_url": {"url": url}} for url in pictures),
        {"type": "text", "text": prompt.text},
    ]


def _marked(path: Path, number: int) -> str:
    """A picture with a corner of its own colour, as a data URL of the format that it had."""
    with Image.open(path) as opened:
        kind = "JPEG" if opened.format == "JPEG" else "PNG"
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    colour = (number * SCATTER) % 2**24
    side = max(1, min(picture.size) // 16)
    picture.paste((colour >> 16, colour >> 8 & 255, colour & 255), (0, 0, side, side))
    data = io.BytesIO()
    picture.save(data, kind, quality=95, compress_level=1)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
