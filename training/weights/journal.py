"""What an interrupted export has finished: a line for each shard, so that the next attempt goes on behind it."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipelines.system.durable import append_line, partial_of, sha256_file, write_text
from training.weights.writer import Written

log = logging.getLogger(__name__)


class Shard(BaseModel):
    """A shard that is on the disk in every model."""

    model_config = ConfigDict(frozen=True)

    number: int
    files: dict[str, Written]
    """By name of the model."""

    errors: tuple[float, ...]
    """Relative error of each matrix that was rounded in it."""


class Journal:
    """Of one pass that writes some models side by side."""

    def __init__(self, folder: Path, models: Sequence[str], key: str) -> None:
        """Take up what an attempt with the same key has left; otherwise remove what is there.

        Args:
            folder: Holds the models' unfinished folders.
            models: Their names.
            key: Names everything that decides their bytes.
        """
        self.path = journal_file(folder, models)
        self._folder, self._models = folder, models
        self._lock = threading.Lock()
        self._files: dict[int, dict[str, Written]] = {}
        self._errors: dict[int, list[float]] = {}
        self.done = self._read(key)
        self._prepare(key)

    def unfinished(self, model: str) -> Path:
        """Where a model lies while it is written."""
        return partial_of(self._folder / model)

    def note(self, number: int, errors: Sequence[float]) -> None:
        """Hand in figures of a shard, before the last bytes of its files."""
        self._errors.setdefault(number, []).extend(errors)

    def finished(self, model: str, number: int, written: Written) -> None:
        """Record a shard as soon as every model has it."""
        with self._lock:
            files = self._files.setdefault(number, {})
            files[model] = written
            if len(files) == len(self._models):
                shard = Shard(number=number, files=files, errors=tuple(self._errors.pop(number)))
                self.done[number] = shard
                append_line(self.path, shard.model_dump_json())

    def _read(self, key: str) -> dict[int, Shard]:
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        if not lines or json.loads(lines[0]) != {"key": key}:
            return {}
        log.info("checking %d files that an earlier attempt has finished", len(self._models) * (len(lines) - 1))
        shards = map(Shard.model_validate_json, filter(_whole, lines[1:]))
        return {shard.number: shard for shard in shards if self._there(shard)}

    def _there(self, shard: Shard) -> bool:
        """Whether its files are what was written: the manifest takes over their hashes without reading them again."""
        files = {self.unfinished(model) / written.file: written for model, written in shard.files.items()}
        return all(
            path.is_file() and path.stat().st_size == written.size and sha256_file(path) == written.sha256
            for path, written in files.items()
        )

    def _prepare(self, key: str) -> None:
        """Leave finished shards and nothing else."""
        kept = {(model, written.file) for shard in self.done.values() for model, written in shard.files.items()}
        for model in self._models:
            partial = self.unfinished(model)
            partial.mkdir(parents=True, exist_ok=True)
            for entry in partial.iterdir():
                if (model, entry.name) not in kept:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        lines = [json.dumps({"key": key}), *(shard.model_dump_json() for shard in self.done.values())]
        write_text(self.path, "".join(f"{line}\n" for line in lines))


def journal_file(folder: Path, models: Sequence[str]) -> Path:
    """Of the pass that writes these models into a folder."""
    return folder / f".{'-'.join(models)}.shards.jsonl"


def _whole(line: str) -> bool:
    """Whether a line was written to its end."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
