"""When the monitor asks for a retrain: after checks that agree, and not again until it was quiet and a pause over."""

from __future__ import annotations

from datetime import datetime, timedelta

from pipelines.artifact import Artifact
from pipelines.config_monitoring import RetrainPolicy
from pipelines.monitoring.snapshot import Snapshot


class Asking(Artifact):
    """What is remembered between checks."""

    counted: datetime | None = None
    """Time of the comparison that was counted last."""

    bad: int = 0
    """Checks in a row that gave reason to ask."""

    good: int = 0
    """Checks in a row that did not."""

    armed: bool = True
    """Whether it was quiet since it asked last."""

    asked: datetime | None = None
    """When it asked last. None: never."""

    reason: str | None = None
    """Why it did."""


def consider(asking: Asking, snapshot: Snapshot, policy: RetrainPolicy) -> Asking:
    """What is asked after one more look. One that compared nothing new, or too little, changes nothing."""
    if policy.on == "never":
        return Asking(asked=asking.asked)
    if snapshot.compared in (None, asking.counted) or not any(each.enough for each in snapshot.inputs):
        return asking
    changed = [comparison for comparison in snapshot.inputs if comparison.changed]
    bad, good = (asking.bad + 1, 0) if changed else (0, asking.good + 1)
    armed = asking.armed or good >= policy.checks
    counted = asking.model_copy(update={"counted": snapshot.compared, "bad": bad, "good": good, "armed": armed})
    if bad < policy.checks or not armed or not _paused(asking, snapshot.time, policy):
        return counted
    found = ", ".join(f"{each.feature} (PSI {each.psi:.2f}, n {each.n})" for each in changed)
    return counted.model_copy(update={"armed": False, "asked": snapshot.time, "reason": f"input changed: {found}"})


def _paused(asking: Asking, now: datetime, policy: RetrainPolicy) -> bool:
    return asking.asked is None or now - asking.asked >= timedelta(hours=policy.pause_hours)
