"""What happened between two snapshots: counters only ever grow, until an engine is started anew."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.monitoring.snapshot import EngineFacts, Snapshot


@dataclass(frozen=True)
class Happened:
    """Between two looks at one engine."""

    seconds: float
    finished: float
    lost: float
    rejected: float
    preempted: float
    slow_share: float | None
    """Of the whole answers, those that took longer than the service level allows. None: there were none."""


def happened(before: Snapshot, now: Snapshot, slo_seconds: float) -> Happened | None:
    """What an engine did meanwhile; None where it is unknown, or another engine.

    Args:
        slo_seconds: A bound of the engine's histogram; the next lower bound counts if it is none.
    """
    if before.engine is None or now.engine is None or before.engine.started != now.engine.started:
        return None
    old, new = before.engine, now.engine
    return Happened(
        seconds=(now.time - before.time).total_seconds(),
        finished=new.finished - old.finished,
        lost=new.lost - old.lost,
        rejected=(new.rejections or 0) - (old.rejections or 0),
        preempted=new.preemptions - old.preemptions,
        slow_share=_slow(old, new, slo_seconds),
    )


@dataclass(frozen=True)
class Answered:
    """By the front, to those who asked the model, between two looks."""

    total: float
    errors: float
    """Of the server's: status 500 and above."""


def answered(before: Snapshot, now: Snapshot) -> Answered | None:
    """What the front answered meanwhile; None where it is unknown, or was started anew."""
    if before.front is None or now.front is None:
        return None
    grown = {code: count - before.front.answers.get(code, 0) for code, count in now.front.answers.items()}
    if any(count < 0 for count in grown.values()) or before.front.answers.keys() - grown.keys():
        return None
    return Answered(sum(grown.values()), sum(count for code, count in grown.items() if code.startswith("5")))


def _slow(old: EngineFacts, new: EngineFacts, slo_seconds: float) -> float | None:
    grown = {bound: count - old.latency.get(bound, 0) for bound, count in new.latency.items()}
    total = grown.get(float("inf"), 0)
    bounds = [bound for bound in grown if bound <= slo_seconds]
    return None if total <= 0 or not bounds else 1 - grown[max(bounds)] / total
