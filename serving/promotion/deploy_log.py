"""The deploy log: `deploy.jsonl`, one line per transition, only ever appended to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.system.durable import append_line

State = Literal[
    "verify",
    "choose",
    "hold",
    "drain",
    "stop",
    "start",
    "reload",
    "adapter",
    "probe",
    "release",
    "watch",
    "serving",
    "abort",
    "undo",
    "restored",
    "down",
    "stopped",
    "crashed",
    "recovered",
]

Note = Callable[[State, str], None]
"""Writes a transition of a promotion that is under way."""

log = logging.getLogger(__name__)


class Transition(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    """UTC; durations are measured by a clock that nobody sets."""

    version: int | None
    """The version that is being promoted, or None when the service is stopped."""

    state: State
    detail: str
    hold_seconds: float
    """How long requests have been waiting for this call so far."""


class DeployLog:
    """The log in one serving folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "deploy.jsonl"

    def write(self, version: int | None, state: State, detail: str = "", hold_seconds: float = 0.0) -> None:
        """Append a transition; durable on return."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        transition = Transition(
            time=datetime.now(UTC), version=version, state=state, detail=detail, hold_seconds=round(hold_seconds, 3)
        )
        append_line(self.path, transition.model_dump_json())
        level = logging.ERROR if state in {"down", "crashed"} else logging.INFO
        log.log(level, "%s%s %s", "" if version is None else f"v{version} ", state, detail)

    def read(self) -> list[Transition]:
        """Every transition; a line that a crash cut off is left out."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return [transition for line in lines if (transition := _parse(line)) is not None]


def _parse(line: str) -> Transition | None:
    try:
        return Transition.model_validate_json(line)
    except ValidationError:
        return None
