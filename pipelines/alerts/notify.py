"""`notify`: called after every check with all that is wrong then; tells what begins, what goes on and what is over.

    alerts.json   in the state folder: what fires, what waits for each sink, what became of its last message

What is to be told is on disk before it is sent: a crash between the two tells it twice, never not at all.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class AlertState(BaseModel):
    """What `alerts.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alerts: dict[str, Tracked] = {}
    """By fingerprint."""

    outboxes: dict[str, Outbox] = {}
    """By sink."""


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


def notify(config: Alerts, state_folder: Path, alerts_now: Sequence[Alert], *, now: datetime | None = None) -> Report:
    """Tell whoever is to be told, once, after a check.

    Args:
        config: The section `alerts`.
        state_folder: Keeps `alerts.json` from check to check; one call at a time.
        alerts_now: Everything that is wrong now: what is missing is well.
        now: Of the check; the present unless told.

    Raises:
        BadInput: `alerts.json` is not what we wrote.
    """
    moment = now or datetime.now(UTC)
    with _locked(state_folder):
        before = read_alerts(state_folder)
        tracked, notices = follow(before.alerts, alerts_now, config, moment)
        outboxes = {
            sink.name: before.outboxes.get(sink.name, Outbox()).with_notices(notices, sink) for sink in config.sinks
        }
        _write(state_folder, AlertState(alerts=tracked, outboxes=outboxes))
        jobs = {sink.name: outboxes[sink.name].due(sink, moment) for sink in config.sinks}
        deliveries = deliver({name: job for name, job in jobs.items() if job is not None})
        outboxes |= {name: outboxes[name].after(delivery, moment) for name, delivery in deliveries.items()}
        _write(state_folder, AlertState(alerts=tracked, outboxes=outboxes))
    return Report(
        firing=tuple(known.alert for known in tracked.values() if known.fired is not None),
        notices=notices,
        deliveries=tuple(deliveries.values()),
        waiting={name: len(outbox.waiting) for name, outbox in outboxes.items()},
    )


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


def _write(state_folder: Path, state: AlertState) -> None:
    write_text(_file(state_folder), state.model_dump_json(indent=1), mode=0o600)


def _file(state_folder: Path) -> Path:
    return state_folder / "alerts.json"


@contextmanager
def _locked(state_folder: Path) -> Iterator[None]:
    state_folder.mkdir(parents=True, exist_ok=True)
    with (state_folder / "alerts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
