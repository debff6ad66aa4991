"""Finished measurements on disk: answers first, then the record that makes them count.

A measurement is named by everything that decides it: model, questions, prompt, engine and flags. It lies in the step's
folder, and a copy in the machine's cache, because the same base is measured for every candidate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipelines.answers import ANSWERS, read_answers, write_answers
from pipelines.evaluation import Answer, Evaluation
from pipelines.system.durable import commit, sha256_file, write_text

RECORD = "record.json"


class Record(BaseModel):
    """What `record.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Digest of everything that decides the measurement."""

    answers_digest: str
    evaluation: Evaluation


def write_record(folder: Path, key: str, evaluation: Evaluation, answers: Sequence[Answer]) -> Evaluation:
    """Keep a measurement: its answers, and last the record."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    write_answers(folder / ANSWERS, answers)
    record = Record(key=key, answers_digest=sha256_file(folder / ANSWERS), evaluation=evaluation)
    write_text(folder / RECORD, record.model_dump_json(indent=1))
    return evaluation


def read_record(folder: Path, key: str) -> Evaluation | None:
    """The measurement in a folder, if it is whole and the one that is named."""
    if not (folder / RECORD).is_file():
        return None
    record = Record.model_validate_json((folder / RECORD).read_text())
    if record.key != key or not (folder / ANSWERS).is_file():
        return None
    whole = sha256_file(folder / ANSWERS) == record.answers_digest
    return record.evaluation.model_copy(update={"answers": folder / ANSWERS}) if whole else None


def remember(cache: Path, folder: Path, key: str) -> None:
    """Copy a finished measurement to the cache."""
    kept, partial = cache / key, cache / f".{key}.{os.getpid()}"
    if read_record(kept, key) is not None:
        return
    for leftover in (kept, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (ANSWERS, RECORD):
        shutil.copyfile(folder / name, partial / name)
    commit(partial, kept)


def recall(cache: Path, folder: Path, key: str) -> Evaluation | None:
    """Bring a measurement from the cache into the step's folder, or None if it is not there whole."""
    if (evaluation := read_record(cache / key, key)) is None:
        return None
    answers = tuple(read_answers(evaluation.answers).values())
    return write_record(folder, key, evaluation.model_copy(update={"answers": folder / ANSWERS}), answers)
