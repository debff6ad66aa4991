"""`notify`: called after every check with all that is wrong then; tells what begins, what goes on and what is over.

    alerts.json   in the state folder: what fires, what waits for each sink, what became of its last message

What is to be told is on disk before it is sent: a crash between the two tells it twice, never not at all. A disk that
takes nothing, or a file that is not ours, keeps nobody from being told: both are when it matters most.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.alerts.alert import Alert, Notice
from pipelines.alerts.delivery import Delivery, deliver
from pipelines.alerts.hysteresis import Tracked, follow
from pipelines.alerts.outbox import Outbox
from pipelines.config_alerts import Alerts
from pipelines.errors import BadInput
from pipelines.system.durable import write_text

log = logging.getLogger(__name__)


class AlertState(BaseModel):
    """What `alerts.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alerts: dict[str, Tracked] = {}
    """By fingerprint."""

    outboxes: dict[str, Outbox] = {}
    """By sink."""


@dataclass
class Memory:
    """Of a process that goes on checking: what its last check left, where that could not be written."""

    state: AlertState | None = None


class Report(BaseModel):
    """What one call did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    firing: tuple[Alert, ...]
    """What fires now."""

    notices: tuple[Notice, ...]
    """What this check changed."""

    deliveries: tuple[Delivery, ...]
    """Messages that were tried, failed ones too."""

    waiting: dict[str, int]
    """Notices that each sink has yet to be told."""


def notify(
    config: Alerts,
    state_folder: Path,
    alerts_now: Sequence[Alert],
    *,
    unknown: Set[str] = frozenset(),
    memory: Memory | None = None,
    now: datetime | None = None,
) -> Report:
    """Tell whoever is to be told, once, after a check.

    Args:
        config: The section `alerts`.
        state_folder: Keeps `alerts.json` from check to check; one call at a time.
        alerts_now: Everything that is wrong now: what is missing is well.
        unknown: Names of alerts of which this check can say neither: they stay as they were.
        memory: The same for every check of one process. Without one, what cannot be written cannot be counted either,
            and is told at the first check that finds it.
        now: Of the check; the present unless told.
    """
    moment = now or datetime.now(UTC)
    kept = memory or Memory()
    with _locked(state_folder):
        before = kept.state or _known(state_folder)
        state, notices = _after(before, alerts_now, config, moment, unknown)
        if not _keep(state_folder, state, kept) and memory is None:
            at_once = config.model_copy(update={"fire_after": 1})
            state, notices = _after(before, alerts_now, at_once, moment, unknown)
        outboxes = state.outboxes
        jobs = {sink.name: outboxes[sink.name].due(sink, moment) for sink in config.sinks}
        deliveries = deliver({name: job for name, job in jobs.items() if job is not None})
        outboxes |= {name: outboxes[name].after(delivery, moment) for name, delivery in deliveries.items()}
        _keep(state_folder, AlertState(alerts=state.alerts, outboxes=outboxes), kept)
    return Report(
        firing=tuple(known.alert for known in state.alerts.values() if known.fired is not None),
        notices=notices,
        deliveries=tuple(deliveries.values()),
        waiting={name: len(outbox.waiting) for name, outbox in outboxes.items()},
    )


def _after(
    before: AlertState, alerts_now: Sequence[Alert], config: Alerts, moment: datetime, unknown: Set[str]
) -> tuple[AlertState, tuple[Notice, ...]]:
    tracked, notices = follow(before.alerts, alerts_now, config, moment, unknown)
    outboxes = {
        sink.name: before.outboxes.get(sink.name, Outbox()).with_notices(notices, sink) for sink in config.sinks
    }
    return AlertState(alerts=tracked, outboxes=outboxes), notices


def read_alerts(state_folder: Path) -> AlertState:
    """What is known; nothing before the first check.

    Raises:
        BadInput: The file is not what we wrote.
    """
    path = _file(state_folder)
    if not path.is_file():
        return AlertState()
    try:
        return AlertState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(
            f"{path} is not what vlmops wrote ({error.error_count()} problems); delete it: what is wrong is told anew"
        ) from None


def _known(state_folder: Path) -> AlertState:
    """What is known; a file that says nothing, as after going back to another release, is put aside."""
    path = _file(state_folder)
    try:
        try:
            return read_alerts(state_folder)
        except BadInput:
            path.replace(aside := path.with_suffix(".unread"))
            log.error("%s is not what this release writes; it is %s now, and what is wrong is told anew", path, aside)
    except OSError as error:
        log.error("%s cannot be used, and what is wrong is told anew: %s", path, error)
    return AlertState()


def _keep(state_folder: Path, state: AlertState, memory: Memory) -> bool:
    """Write it down, or else remember it; whether it was written."""
    try:
        write_text(_file(state_folder), state.model_dump_json(indent=1), mode=0o600)
    except OSError as error:
        log.error("what was told cannot be written down, and is told all the same: %s", error)
        memory.state = state
        return False
    memory.state = None
    return True


def _file(state_folder: Path) -> Path:
    return state_folder / "alerts.json"


@contextmanager
def _locked(state_folder: Path) -> Iterator[None]:
    try:
        state_folder.mkdir(parents=True, exist_ok=True)
        file = (state_folder / "alerts.lock").open("w")
    except OSError:  # nothing can be written there, and so nothing spoilt
        yield
        return
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
