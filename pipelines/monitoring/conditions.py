"""What is wrong, judged from one snapshot and the one before: the alerts of the embedded stack.

Where Prometheus runs it judges the same by `configs/monitoring/rules`, over minutes; names, severities and summaries
are the same there, which a test checks. For how long something must be wrong before it is told is the alerts' business.
What happens in a moment, a crash say, stands for a while, so that the next look finds it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipelines.config_monitoring import Monitoring
from pipelines.monitoring.between import Answered, Happened, answered, happened
from pipelines.monitoring.snapshot import Snapshot, Source

Severity = Literal["critical", "warning", "info"]

HARMFUL = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"})
"""Reasons of lower clocks that mean heat or power trouble. `sw_power_cap` is not one: full load is enough for it."""

FULL = 0.95
"""Of the KV cache: with requests waiting, it is what they wait for."""

ABORTS = 0.01
"""Share of the requests that may be lost before somebody is told."""

ERRORS = 0.05
"""Share of the front's answers that may be errors of the server's before somebody is told."""

HOLD, CRASH, UNDONE, STALE, SILENT = (timedelta(minutes=minutes) for minutes in (20, 15, 60, 60, 15))
"""How long requests may be held; how long a crash and an undone promotion stand; how old the last probe that passed,
and the last look, may be."""


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
    answered: Answered | None
    limits: Monitoring


Judge = Callable[[Seen], Iterator[str]]
"""Says what is wrong, a sentence each; nothing where nothing is, or nothing is known."""


def standing(earlier: Sequence[Snapshot], now: Snapshot, limits: Monitoring) -> list[Condition]:
    """Every condition that stands.

    Args:
        earlier: Looks of the last minutes, the oldest first: what was counted since then is judged, so that a burst is
            found by more than one look. Those before the engine or the front was started anew do not count.
    """
    between = (happened(before, now, limits.slo_seconds) for before in earlier)
    answers = (answered(before, now) for before in earlier)
    seen = Seen(now, next(filter(None, between), None), next(filter(None, answers), None), limits)
    return [
        Condition(name, severity, summary, "; ".join(details))
        for name, (severity, summary, judge) in CONDITIONS.items()
        if (details := list(judge(seen)))
    ]


def unjudged(now: Snapshot) -> set[str]:
    """Names of the conditions of which nothing can be said: what they are judged from is unknown."""
    return {name for source, names in JUDGED_FROM.items() if source in now.unknown for name in names}


def silent(last: datetime, now: datetime) -> list[Condition]:
    """Whether the monitor that watches no longer looks; judged by another one, since it cannot say so itself."""
    if now - last <= SILENT:
        return []
    summary = "The monitor does not look, so that nothing here is known"
    told = f"it looked last at {last:%Y-%m-%d %H:%M} UTC and still runs; end it, and start it again"
    return [Condition("MonitorSilent", "warning", summary, told)]


def _down(seen: Seen) -> Iterator[str]:
    service = seen.now.service
    if service is None or service.champion is None:
        return  # nothing was promoted yet: that nothing serves is no fault
    if service.state in {"down", "unhealthy", "unreachable", "stopped"}:
        yield f"the service is {service.state}"


def _holding(seen: Seen) -> Iterator[str]:
    service = seen.now.service
    if service is None or service.state != "holding" or service.since is None:
        return
    if (held := seen.now.time - service.since) > HOLD:
        yield f"for {held / timedelta(minutes=1):.0f} minutes"


def _crashed(seen: Seen) -> Iterator[str]:
    yield from _lately(seen, "crashed", CRASH)


def _undone(seen: Seen) -> Iterator[str]:
    yield from _lately(seen, "undo", UNDONE)


def _lately(seen: Seen, state: str, span: timedelta) -> Iterator[str]:
    service = seen.now.service
    last = None if service is None else service.last.get(state)
    if last is not None and seen.now.time - last < span:
        yield f"at {last:%H:%M} UTC"


def _unseen(seen: Seen) -> Iterator[str]:
    serves = seen.now.service is not None and seen.now.service.state == "serving"
    watched = {"service", "disk", "backup", *(("engine", "front", "probe") if serves else ())}
    yield from (f"{source}: {why}" for source, why in seen.now.unknown.items() if source in watched)


def _probe(seen: Seen) -> Iterator[str]:
    if seen.now.probe is not None and not seen.now.probe.passed:
        yield f"{seen.now.probe.matched} of {seen.now.probe.asked} golden answers came again: {seen.now.probe.why}"


def _stale(seen: Seen) -> Iterator[str]:
    probe, service = seen.now.probe, seen.now.service
    if probe is None or service is None or service.state != "serving":
        return
    allowed = max(STALE, 2 * timedelta(minutes=seen.limits.probe_minutes))
    if probe.last_passed is None:
        yield "none has passed"
    elif seen.now.time - probe.last_passed > allowed:
        yield f"the last one passed at {probe.last_passed:%Y-%m-%d %H:%M} UTC"


def _errors(seen: Seen) -> Iterator[str]:
    answers = seen.answered
    if answers is not None and answers.errors > ERRORS * answers.total:
        yield f"{answers.errors:.0f} of {answers.total:.0f} answers"


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
    "ServiceHolding": ("critical", "Requests have been held for longer than any promotion takes", _holding),
    "EngineCrashed": ("warning", "The engine in service ended by itself and was started again", _crashed),
    "PromotionUndone": ("warning", "A promotion was taken back", _undone),
    "SourceUnknown": ("warning", "Something that is watched does not answer", _unseen),
    "GoldenProbeFailed": ("critical", "The model in service does not give its golden answers", _probe),
    "GoldenProbeStale": ("warning", "No golden probe has passed for an hour", _stale),
    "FrontErrors": ("critical", "Clients get server errors from the front", _errors),
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

JUDGED_FROM: dict[Source, tuple[str, ...]] = {
    "service": ("ServiceDown", "ServiceHolding", "EngineCrashed", "PromotionUndone"),
    "engine": ("KvCacheFull", "Preemptions", "RequestsLost", "RequestsRejected", "LatencyBudgetBurnsFast"),
    "front": ("FrontErrors",),
    "probe": ("GoldenProbeFailed", "GoldenProbeStale"),
    "gpu": ("GpuThrottled", "GpuXid", "GpuMemoryErrors", "GpuSharedWithOthers"),
    "disk": ("DiskSpaceLow",),
    "backup": ("BackupTooOld",),
    "inputs": ("InputChanged",),
}
"""By source. The two that say that something is unknown are judged always."""
