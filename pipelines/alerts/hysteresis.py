"""When an alert begins and when it is over: after so many checks in a row that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from pipelines.alerts.alert import RANK, Alert, Notice
from pipelines.config_alerts import Alerts


class Tracked(BaseModel):
    """What is known of one alert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alert: Alert
    """As found last; while it fires, with the highest severity that it has had."""

    bad: int = 0
    """Checks in a row that found it."""

    good: int = 0
    """Checks in a row that did not."""

    fired: datetime | None = None
    """Since when it fires; None: not yet."""

    told: datetime | None = None
    """When it was told last."""


def follow(
    known: Mapping[str, Tracked],
    alerts_now: Iterable[Alert],
    config: Alerts,
    now: datetime,
    unknown: Set[str] = frozenset(),
) -> tuple[dict[str, Tracked], tuple[Notice, ...]]:
    """One check later: what is known then, and what is to be told.

    Args:
        known: By fingerprint.
        alerts_now: Everything that is wrong now; the same alert twice is one, of the higher severity.
        config: How many checks it takes, and after how long it is told again.
        now: Of this check.
        unknown: Names of alerts that this check could not judge. What fires goes on, and is not told to be over.
    """
    found = _distinct(alerts_now)
    missed = {print_: tracked for print_, tracked in known.items() if print_ not in found}
    after = {print_: _seen(known.get(print_), alert) for print_, alert in found.items()}
    after |= {print_: _missed(tracked) for print_, tracked in missed.items() if tracked.alert.name not in unknown}
    notices: list[Notice] = []
    left = {print_: tracked for print_, tracked in missed.items() if tracked.alert.name in unknown}
    for print_, tracked in after.items():
        notice = _notice(tracked, known.get(print_), config, now)
        if notice is not None:
            notices.append(notice)
        if tracked.bad or (tracked.fired is not None and (notice is None or notice.kind != "resolved")):
            left[print_] = _told(tracked, notice)
    return left, tuple(notices)


def _distinct(alerts: Iterable[Alert]) -> dict[str, Alert]:
    found: dict[str, Alert] = {}
    for alert in alerts:
        other = found.get(alert.fingerprint)
        if other is None or RANK[alert.severity] > RANK[other.severity]:
            found[alert.fingerprint] = alert
    return found


def _seen(before: Tracked | None, alert: Alert) -> Tracked:
    if before is None:
        return Tracked(alert=alert, bad=1)
    if before.fired is not None and RANK[before.alert.severity] > RANK[alert.severity]:
        alert = replace(alert, severity=before.alert.severity)  # whoever was told must hear its end
    return before.model_copy(update={"alert": alert, "bad": before.bad + 1, "good": 0})


def _missed(before: Tracked) -> Tracked:
    return before.model_copy(update={"bad": 0, "good": before.good + 1})


def _notice(tracked: Tracked, before: Tracked | None, config: Alerts, now: datetime) -> Notice | None:
    alert, fired = tracked.alert, tracked.fired
    if fired is None:
        due = tracked.bad >= config.fire_after
        return Notice(kind="firing", alert=alert, time=now, since=now) if due else None
    if tracked.good >= config.resolve_after:
        return Notice(kind="resolved", alert=alert, time=now, since=fired)
    if before is not None and RANK[alert.severity] > RANK[before.alert.severity]:
        return Notice(kind="firing", alert=alert, time=now, since=fired)
    if config.repeat_hours is None or tracked.told is None or tracked.good:
        return None
    due = now - tracked.told >= timedelta(hours=config.repeat_hours)
    return Notice(kind="still firing", alert=alert, time=now, since=fired) if due else None


def _told(tracked: Tracked, notice: Notice | None) -> Tracked:
    if notice is None:
        return tracked
    return tracked.model_copy(update={"fired": notice.since, "told": notice.time})
