"""All sinks at once, each with a deadline of its own: none waits for another, and a thread that hangs is left alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Thread

from pydantic import BaseModel, ConfigDict

from pipelines.alerts.message import Message
from pipelines.alerts.sinks.opened import Opened, open_sink
from pipelines.config_alerts import AnySink
from pipelines.errors import VlmopsError


class Delivery(BaseModel):
    """What became of one message at one sink."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sink: str
    time: datetime
    notices: int
    error: str | None
    """None: it was taken."""

    seconds: float


@dataclass(frozen=True)
class Job:
    """A message for a sink."""

    sink: AnySink
    message: Message


def deliver(jobs: Mapping[str, Job]) -> dict[str, Delivery]:
    """Send every message, and return when all are taken, refused or late: after the longest deadline at the latest."""
    attempts = {name: _Attempt(job) for name, job in jobs.items()}
    for attempt in attempts.values():
        attempt.start()
    return {name: attempt.result() for name, attempt in attempts.items()}


class _Attempt:
    """One message on its way, in a thread that does not keep the process alive."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = time.monotonic()
        self._outcome: tuple[str | None, float] | None = None
        self._thread = Thread(target=self._run, name=f"alert-{job.sink.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self) -> Delivery:
        deadline = self._job.sink.deadline_seconds
        self._thread.join(max(0.0, self._began + deadline - time.monotonic()))
        error, seconds = self._outcome or (self._why_nothing(deadline), time.monotonic() - self._began)
        return Delivery(
            sink=self._job.sink.name,
            time=datetime.now(UTC),
            notices=len(self._job.message.notices),
            error=error,
            seconds=round(seconds, 3),
        )

    def _why_nothing(self, deadline: float) -> str:
        if self._thread.is_alive():
            return f"no answer within {deadline:g} s"
        return "it ended by an error of ours, whose trace is in the log"

    def _run(self) -> None:
        opened: Opened | None = None
        try:
            opened = open_sink(self._job.sink)
            opened.send(self._job.message, self._job.sink.deadline_seconds)
        except VlmopsError as error:
            self._finish(opened.shown(str(error)) if opened is not None else str(error))
        else:
            self._finish(None)

    def _finish(self, error: str | None) -> None:
        self._outcome = (error, time.monotonic() - self._began)
