"""One run is one directory: the resolved config, and per step a folder whose `output.json` is written last."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config import Config
from pipelines.errors import AlreadyRunning, BadInput, RunConflict
from pipelines.steps import Step, T
from pipelines.system.durable import write_text
from pipelines.system.manifest import text_digest

RELEASES = "release"
"""Folder of a run that something was released from; `vlmops gc` keeps such a run, wherever the release itself lies."""


class Record(BaseModel):
    """What `output.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: str
    """Digest of the outputs that the step was given."""

    artifact: dict[str, Any]
    seconds: float
    peak_gib: float
    """Peak resident memory of the step's process and its children."""


class Failure(BaseModel):
    """What `failure.json` holds: why the last attempt of a step ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    message: str


@dataclass(frozen=True)
class Run:
    """A run by its directory."""

    root: Path

    @classmethod
    def create(cls, root: Path, config: Config) -> Run:
        """Start a run, or reopen one that has the same config.

        Raises:
            RunConflict: The directory already holds a run with another config.
        """
        run = cls(root)
        if run._config_file.exists():
            if run.config != config:
                raise RunConflict(f"{root} holds a run with another config; give the new run another name")
            return run
        root.mkdir(parents=True, exist_ok=True)
        write_text(run._config_file, config.model_dump_json(indent=2))
        return run

    @classmethod
    def open(cls, root: Path) -> Run:
        """An existing run.

        Raises:
            BadInput: There is no run in this directory.
        """
        run = cls(root)
        if not run._config_file.is_file():
            raise BadInput(f"{root} holds no run (no config.json); `vlmops status` lists the runs there are")
        return run

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.root.name

    @cached_property
    def config(self) -> Config:
        """The resolved config the run was created with.

        Raises:
            BadInput: It is of another version of vlmops.
        """
        try:
            return Config.model_validate_json(self._config_file.read_text())
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise BadInput(
                f"{self._config_file} is of another version of vlmops ({where}: {error.errors()[0]['msg']}); "
                f"start a new run by --name, or delete {self.root}"
            ) from None

    @property
    def request(self) -> Path:
        """Who asked for the run, and why, as JSON: `trigger`, `reason`. Absent where the command line did."""
        return self.root / "request.json"

    def asked(self) -> dict[str, str]:
        """`trigger` and `reason` of the request, as far as they were given."""
        told = json.loads(self.request.read_text()) if self.request.is_file() else {}
        return {key: str(told[key]) for key in ("trigger", "reason") if told.get(key)}

    def folder(self, step: Step[Any]) -> Path:
        """Where a step writes."""
        return self.root / step.name

    def finished(self, step: Step[Any]) -> bool:
        """Whether the step has a result made from the inputs that are there now, in today's form."""
        if not self._output(step).is_file():
            return False
        record = self.record(step)
        return record.inputs == self._inputs(step) and _is_valid(step, record.artifact)

    def record(self, step: Step[Any]) -> Record:
        """The whole record of a finished step."""
        return Record.model_validate_json(self._output(step).read_text())

    def read(self, step: Step[T]) -> T:
        """The result of a step.

        Raises:
            BadInput: The step has not finished in this run, or in another version of vlmops.
        """
        if not self._output(step).is_file():
            raise BadInput(f"{step.name} has not finished in {self.root}; run it first")
        artifact = self.record(step).artifact
        if not _is_valid(step, artifact):
            raise BadInput(f"{self._output(step)} is of another version of vlmops; run {step.name} again")
        return step.output.model_validate(artifact)

    def write(self, step: Step[T], artifact: T, *, seconds: float, peak_gib: float) -> None:
        """Record a result: last, and at once, so that its presence means that the step finished."""
        record = Record(
            inputs=self._inputs(step),
            artifact=artifact.model_dump(mode="json"),
            seconds=seconds,
            peak_gib=peak_gib,
        )
        write_text(self._output(step), record.model_dump_json(indent=2))
        self._failure(step).unlink(missing_ok=True)

    def forget(self, step: Step[Any]) -> None:
        """Withdraw a result before the step runs again, so that a crash under way leaves no stale one."""
        self._output(step).unlink(missing_ok=True)

    def failure(self, step: Step[Any]) -> Failure | None:
        """Why the last attempt of a step ended, or None if it did not fail."""
        path = self._failure(step)
        return Failure.model_validate_json(path.read_text()) if path.is_file() else None

    def write_failure(self, step: Step[Any], error: BaseException) -> None:
        """Record why an attempt ended."""
        failure = Failure(error=type(error).__name__, message=str(error))
        write_text(self._failure(step), failure.model_dump_json(indent=2))

    @contextmanager
    def claim(self, step: Step[Any]) -> Iterator[Path]:
        """The step's folder, for one process at a time; a dead process holds no claim.

        Raises:
            AlreadyRunning: Another process is running this step of this run.
        """
        folder = self.folder(step)
        folder.mkdir(exist_ok=True)
        with self._lock(step).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(
                    f"{step.name} of {self.root} is already running (process {self._noted(step)}); wait for it"
                ) from None
            lock.truncate(0)
            print(os.getpid(), file=lock, flush=True)
            yield folder

    def claimant(self, step: Step[Any]) -> int | None:
        """The process on this machine that is running a step now, or None."""
        if not self._lock(step).is_file():
            return None
        with self._lock(step).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._noted(step)
        return None

    def _inputs(self, step: Step[Any]) -> str:
        artifacts = (self.record(need).artifact for need in step.needs)
        return text_digest(*(json.dumps(artifact, sort_keys=True) for artifact in artifacts))

    def _lock(self, step: Step[Any]) -> Path:
        return self.folder(step) / ".lock"

    def _noted(self, step: Step[Any]) -> int | None:
        """Who wrote down that the step is theirs; None while they are about to."""
        text = self._lock(step).read_text().strip()
        return int(text) if text else None

    def _output(self, step: Step[Any]) -> Path:
        return self.folder(step) / "output.json"

    def _failure(self, step: Step[Any]) -> Path:
        return self.folder(step) / "failure.json"

    @property
    def _config_file(self) -> Path:
        return self.root / "config.json"


def run_name(text: str) -> str:
    """A run's name as a folder name: Airflow's run ids hold colons and plus signs.

    Raises:
        BadInput: Nothing is left of it, or it would leave the folder of the runs.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if not name:
        raise BadInput(f"{text!r} is no name for a run; use letters, digits, dots and dashes")
    return name


def runs_below(folder: Path) -> list[Run]:
    """Every run in a folder, the newest last."""
    configs = sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return [Run(path.parent) for path in configs]


def _is_valid(step: Step[Any], artifact: dict[str, Any]) -> bool:
    """Whether a result has the form that this version of vlmops gives it."""
    try:
        step.output.model_validate(artifact)
    except ValidationError:
        return False
    return True
