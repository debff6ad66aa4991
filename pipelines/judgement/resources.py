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
    facts = [(r.engine, r.test_digest, r.concurrency, r.hardware, r.flags) for r in (one, other)]
    return one is other or (None not in facts[0] and facts[0] == facts[1])


def _yardstick(candidate: Side, reference: Side) -> tuple[Evaluation | None, str]:
    """The reference, or the base measured beside the candidate if the reference was measured otherwise."""
    if measured_alike(candidate.report, reference.report):
        return reference.evaluation, reference.name
    why = f"{reference.name} was measured by another engine or load, or on other hardware"
    return candidate.report.subject("base"), f"the base, as {why}"


def _ratio(resource: Resource, ours: Evaluation, theirs: Evaluation | None, reference: str, limit: float) -> Finding:
    if not resource.of(ours) > 0:  # NaN too
        return _unmeasured(resource, ours, "the candidate")
    if theirs is None or not resource.of(theirs) > 0:
        return _unmeasured(resource, theirs, reference)
    ratio = resource.of(ours) / resource.of(theirs)
    figures = f"{resource.of(ours):.4g} {resource.unit} are {ratio:.2f} times the {resource.of(theirs):.4g}"
    reason = f"{figures} of {reference}; gate.max_{resource.name}_ratio is {limit:g}"
    return Finding(name=resource.name, outcome="pass" if ratio <= limit else "fail", reason=reason)


def _unmeasured(resource: Resource, found: Evaluation | None, name: str) -> Finding:
    seen = "nothing" if found is None else f"{resource.of(found):g} {resource.unit}"
    return objection(resource.name, f"{seen} was measured of {name}; evaluate it again")
