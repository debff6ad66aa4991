"""May the candidate be slower or larger than what it replaces? Ratios, where the config asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate
from pipelines.evaluation import EvalReport, Evaluation
from pipelines.judgement.side import Side, objection


@dataclass(frozen=True)
class Resource:
    """What serving costs."""

    name: str
    unit: str
    of: Callable[[Evaluation], float]


RESOURCES = (
    Resource("latency", "ms at the 99th percentile", lambda evaluation: evaluation.latency_p99_ms),
    Resource("memory", "GiB at the peak", lambda evaluation: evaluation.peak_gib),
)


def resources(rules: Gate, candidate: Side, reference: Side) -> tuple[Finding, ...]:
    """A finding for each resource that has a limit."""
    limits = {"latency": rules.max_latency_ratio, "memory": rules.max_memory_ratio}
    theirs, name = _yardstick(candidate, reference)
    return tuple(
        _ratio(resource, candidate.evaluation, theirs, name, limit)
        for resource in RESOURCES
        if (limit := limits[resource.name]) is not None
    )


def measured_alike(one: EvalReport, other: EvalReport) -> bool:
    """Whether times and memory of two reports may be compared; what a report does not say is no match."""
    known = one.concurrency is not None and one.concurrency == other.concurrency
    return one is other or (known and one.engine == other.engine and one.test_digest == other.test_digest)


def _yardstick(candidate: Side, reference: Side) -> tuple[Evaluation | None, str]:
    """The reference, or the base measured beside the candidate if another engine or load measured the reference."""
    if measured_alike(candidate.report, reference.report):
        return reference.evaluation, reference.name
    return candidate.report.subject("base"), f"the base, as {reference.name} was measured by another engine or load"


def _ratio(resource: Resource, ours: Evaluation, theirs: Evaluation | None, reference: str, limit: float) -> Finding:
    if theirs is None or not resource.of(theirs) > 0:  # NaN too
        seen = "nothing" if theirs is None else f"{resource.of(theirs):g} {resource.unit}"
        return objection(resource.name, f"{seen} was measured of {reference}; evaluate it again")
    ratio = resource.of(ours) / resource.of(theirs)
    figures = f"{resource.of(ours):.4g} {resource.unit} are {ratio:.2f} times the {resource.of(theirs):.4g}"
    reason = f"{figures} of {reference}; gate.max_{resource.name}_ratio is {limit:g}"
    return Finding(name=resource.name, outcome="pass" if ratio <= limit else "fail", reason=reason)
