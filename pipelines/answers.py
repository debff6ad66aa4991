"""Answer files: JSONL, one `Answer` a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.evaluation import Answer
from pipelines.system.durable import write_text


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write the file whole, or not at all."""
    write_text(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers by item."""
    answers = (Answer.model_validate_json(line) for line in path.read_text().splitlines())
    return {answer.item: answer for answer in answers}
