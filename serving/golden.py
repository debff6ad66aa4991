"""Golden answers: a few questions with the answers that a version gave when it was measured.

The folder is self-contained: `golden.jsonl` and the images it names. Half of the questions are ones that the base
answers otherwise, so that a probe notices when another model than the wanted one is serving.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipelines.errors import BadInput
from pipelines.evaluation import Answer
from pipelines.system.durable import sha256_file, write_text
from pipelines.system.manifest import text_digest
from serving.questions import Message, Question, encode

log = logging.getLogger(__name__)


class Golden(BaseModel):
    """One question and the answer that must come again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    messages: tuple[Message, ...]
    """As in the data set; image paths are relative to the golden file."""

    max_tokens: int
    answer: str


def choose(candidate: Sequence[Answer], base: Mapping[str, str], count: int) -> list[Answer]:
    """Pick answers for the probe, spread over the questions; up to half differ from what the base answered.

    Args:
        base: The base's answers by item.
    """
    usable = [answer for answer in candidate if answer.text.strip()]  # an empty answer proves nothing
    changed = [answer for answer in usable if base.get(answer.item) != answer.text]
    same = [answer for answer in usable if base.get(answer.item) == answer.text]
    from_changed = min(len(changed), max(count - len(same), (count + 1) // 2))
    return [*_spread(changed, from_changed), *_spread(same, count - from_changed)]


def _spread(answers: Sequence[Answer], count: int) -> list[Answer]:
    count = min(count, len(answers))
    return [answers[i * len(answers) // count] for i in range(count)]


def write_golden(folder: Path, answers: Sequence[Answer], questions: Sequence[Question], max_tokens: int) -> Path:
    """Write the golden file and copy its images beside it."""
    by_item = {question.item: question for question in questions}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for answer in answers:
        question = by_item[answer.item]
        for image in question.images:
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(question.folder / image, folder / image)
        golden = Golden(item=answer.item, messages=question.messages, max_tokens=max_tokens, answer=answer.text)
        lines.append(golden.model_dump_json() + "\n")
    write_text(folder / "golden.jsonl", "".join(lines))
    return folder / "golden.jsonl"


def read_golden(path: Path) -> list[Golden]:
    """The golden answers in a file.

    Raises:
        BadInput: There is no such file, or it is not whole.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing; without golden answers no probe can pass: evaluate and register again")
    try:
        return [Golden.model_validate(json.loads(line)) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise BadInput(f"{path} holds no golden answers ({error}); evaluate and register again") from error


def verify_golden(path: Path, digest: str | None) -> None:
    """Check golden answers and their images before a probe counts on them.

    Args:
        path: The golden file.
        digest: What `golden_digest` said of it. None: it was registered before there was one, and whoever could write
            to its folder may have changed what must come again.

    Raises:
        BadInput: Something is missing, or other than it was.
    """
    for image in sorted({image for golden in read_golden(path) for image in golden_images(golden)}):
        if not (path.parent / image).is_file():
            raise BadInput(
                f"{path.parent / image} is missing, which a golden question shows; evaluate and register again"
            )
    if digest is None:
        log.warning("nothing tells whether %s is as it was: register the version again, with a digest", path)
    elif golden_digest(path) != digest:
        raise BadInput(f"{path} or an image of it was changed since it was registered; evaluate and register again")


def golden_images(golden: Golden) -> list[str]:
    """Paths of the images that a golden question shows, relative to its file."""
    parts = (part for message in golden.messages for part in message["content"])
    return [part["image"] for part in parts if part["type"] == "image"]


def golden_digest(path: Path) -> str:
    """Of the golden questions and answers in a file, and of the images that they are about."""
    images = sorted({image for golden in read_golden(path) for image in golden_images(golden)})
    files = [sha256_file(path.parent / image) for image in images]
    return text_digest(sha256_file(path), *(part for pair in zip(images, files, strict=True) for part in pair))


def encoded(golden: Golden, folder: Path) -> list[Message]:
    """The messages as they are sent."""
    return [
        {**message, "content": [encode(part, folder) for part in message["content"]]} for message in golden.messages
    ]
