"""What is wrong, judged from one snapshot and the one before: the alerts of the embedded stack.

Where Prometheus runs it judges the same by `configs/monitoring/rules`, over minutes; names, severities and summaries
are the same there, which a test checks. For how long something must be wrong before it is told is the alerts' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pipelines.config_monitoring import Monitoring
from pipelines.monitoring.between import Happened, happened
from pipelines.monitoring.snapshot import Snapshot

Severity = Literal["critical", "warning", "info"]

HARMFUL = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"})
"""Reasons of lower clocks that mean heat or power trouble. `sw_power_cap` is not one: full load is enough for it."""

FULL = 0.95
"""Of the KV cache: with requests waiting, it is what they wait for."""

ABORTS = 0.01
"""Share of the requests that may be lost before somebody is told."""


@dataclass(frozen=True)
class Condition:
    """Something that is wrong now."""

    name: str
    severity: Severity
    summary: str
    detail: str

    @property
    def runbook(self) -> str:
        """What to do."""
        return f"docs/operations.md#{self.name.lower()}"


@dataclass(frozen=True)
class Seen:
    """What conditions are judged from."""

    now: Snapshot
    between: Happened | None
    limits: Monitoring


Judge = Callable[[Seen], Iterator[str]]
"""Says what is wrong, a sentence each; nothing where nothing is, or nothing is known."""


def standing(before: Snapshot | None, now: Snapshot, limits: Monitoring) -> list[Condition]:
    """Every condition that stands."""
    seen = Seen(now, happened(before, now, limits.slo_seconds), limits)
    return [
        Condition(name, severity, summary, "; ".join(details))
        for name, (severity, summary, judge) in CONDITIONS.items()
        if (details := list(judge(seen)))
    ]


def _down(seen: Seen) -> Iterator[str]:
    service = seen.now.service
    if service is None or service.champion is None:
        return  # nothing was promoted yet: that nothing serves is no fault
    if service.state in {"down", "unhealthy", "unreachable", "stopped"}:
        yield f"the service is {service.state}"


def _unseen(seen: Seen) -> Iterator[str]:
    watched = {"engine", "front", "probe"} if seen.now.service and seen.now.service.state == "serving" else set()
    yield from (f"{source}: {why}" for source, why in seen.now.unknown.items() if source in watched)


def _probe(seen: Seen) -> Iterator[str]:
    if seen.now.probe is not None and not seen.now.probe.passed:
        yield f"{seen.now.probe.matched} of {seen.now.probe.asked} golden answers came again: {seen.now.probe.why}"


def _full(seen: Seen) -> Iterator[str]:
    engine = seen.now.engine
    if engine is not None and engine.kv_usage > FULL and engine.waiting > 0:
        yield f"{engine.kv_usage:.0%} of the KV cache is in use, and {engine.waiting:.0f} requests wait"


def _preempted(seen: Seen) -> Iterator[str]:
    if seen.between is not None and seen.between.preempted > 0:
        yield f"{seen.between.preempted:.0f} preemptions within {seen.between.seconds:.0f} s"


def _lost(seen: Seen) -> Iterator[str]:
    happened = seen.between
    if happened is not None and happened.lost > ABORTS * max(happened.finished, 1):
        yield f"{happened.lost:.0f} of {happened.finished:.0f} requests were aborted or failed"


def _rejected(seen: Seen) -> Iterator[str]:
    if seen.between is not None and seen.between.rejected > 0:
        yield f"{seen.between.rejected:.0f} requests were refused within {seen.between.seconds:.0f} s"


def _slow(seen: Seen) -> Iterator[str]:
    slow = seen.between.slow_share if seen.between is not None else None
    if slow is not None and slow > FAST_BURN * (1 - seen.limits.slo_share):
        yield f"{slow:.0%} of the answers took more than {seen.limits.slo_seconds:g} s"


FAST_BURN = 14.4
"""Times the allowed share of slow answers: at this rate a month's are used up in two days (Google's SRE workbook)."""


def _throttled(seen: Seen) -> Iterator[str]:
    for card in seen.now.cards:
        if reasons := sorted(HARMFUL.intersection(card.throttled or ())):
            yield f"card {card.index}: {', '.join(reasons)} at {card.temperature_celsius} °C"


def _xid(seen: Seen) -> Iterator[str]:
    for card in seen.now.cards:
        if card.xids:
            yield f"card {card.index}: XID {', '.join(map(str, sorted(card.xids)))}"


def _ecc(seen: Seen) -> Iterator[str]:
    for card in seen.now.cards:
        if card.ecc_uncorrected:
            yield f"card {card.index}: {card.ecc_uncorrected} errors of its memory"


def _gpu_unseen(seen: Seen) -> Iterator[str]:
    if seen.now.gpu_state == "unknown":
        yield seen.now.unknown.get("gpu", "NVML does not answer")


def _strangers(seen: Seen) -> Iterator[str]:
    for card in seen.now.cards:
        if strangers := (card.processes or {}).get("other"):
            yield f"card {card.index}: {strangers} processes of somebody else"


def _disk(seen: Seen) -> Iterator[str]:
    for disk in seen.now.disks:
        if disk.free_bytes < seen.limits.disk_gib * 2**30:
            yield f"{disk.name}: {disk.free_bytes / 2**30:.1f} GiB free, {seen.limits.disk_gib:g} wanted"


def _backup(seen: Seen) -> Iterator[str]:
    if seen.now.backup is None:
        if "backup" not in seen.now.unknown:
            yield "there is none"
    elif (age := seen.now.time - seen.now.backup) > timedelta(hours=seen.limits.backup_hours):
        yield f"{age / timedelta(hours=1):.0f} h old"


def _inputs(seen: Seen) -> Iterator[str]:
    for each in seen.now.inputs:
        if each.changed:
            yield f"{each.feature}: PSI {each.psi:.2f}, KS {each.ks:.2f}, n {each.n}"


CONDITIONS: dict[str, tuple[Severity, str, Judge]] = {
    "ServiceDown": ("critical", "No version serves", _down),
    "SourceUnknown": ("warning", "Something that is watched does not answer", _unseen),
    "GoldenProbeFailed": ("critical", "The model in service does not give its golden answers", _probe),
    "KvCacheFull": ("warning", "The KV cache is full and requests wait", _full),
    "Preemptions": ("warning", "The engine puts requests back for want of KV cache", _preempted),
    "RequestsLost": ("critical", "Requests end in an abort or an error", _lost),
    "RequestsRejected": ("warning", "The engine's queue is full and it refuses requests", _rejected),
    "LatencyBudgetBurnsFast": ("critical", "Answers are slow: a month's budget is used up in two days", _slow),
    "GpuThrottled": ("warning", "A card is slowed down by heat or by its power supply", _throttled),
    "GpuXid": ("critical", "A card reported a critical error", _xid),
    "GpuMemoryErrors": ("critical", "A card's memory has errors that could not be corrected", _ecc),
    "GpuUnknown": ("warning", "There is a driver, and its cards do not answer", _gpu_unseen),
    "GpuSharedWithOthers": ("warning", "Processes of somebody else are on the card", _strangers),
    "DiskSpaceLow": ("critical", "A disk of the line is nearly full", _disk),
    "BackupTooOld": ("warning", "The last backup is too old, or there is none", _backup),
    "InputChanged": ("info", "What is asked differs from what was trained on", _inputs),
}
"""Each with its severity, what it means, and what judges it."""
