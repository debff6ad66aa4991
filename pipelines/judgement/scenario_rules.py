"""What scenario packs bring to the gate beside its config: requirements for their slices, limits for their marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate, Limit
from pipelines.evaluation import EvalReport, Score
from pipelines.judgement.side import Side, objection


def with_scenarios(rules: Gate, report: EvalReport) -> Gate:
    """The config's rules and those of the scenarios that were asked; all must hold."""
    requirements = [requirement for scenario in report.scenarios for requirement in scenario.requirements]
    limits = [limit for scenario in report.scenarios for limit in scenario.limits]
    return rules.model_copy(
        update={"requirements": (*rules.requirements, *requirements), "limits": (*rules.limits, *limits)}
    )


def scenario_objections(rules: Gate, candidate: Side, reference: Side) -> Iterator[str]:
    """Why the scenarios of two reports cannot be compared, or their rules not be followed."""
    ours = {scenario.name: scenario.digest for scenario in candidate.report.scenarios}
    theirs = {scenario.name: scenario.digest for scenario in reference.report.scenarios}
    for name in sorted(ours.keys() - theirs.keys()):
        yield f"{reference.name} was not asked scenario {name}; {reference.way_out}"
    for name in sorted(theirs.keys() - ours.keys()):
        yield f"scenario {name}, which {reference.name} was asked, is missing; evaluate again with that pack"
    for name in sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]):
        yield (
            f"{reference.name} was asked another version of scenario {name} ({theirs[name][:12]}, here "
            f"{ours[name][:12]}); {reference.way_out}"
        )
    counts = Counter(requirement.slice for requirement in rules.requirements)
    yield from (
        f"slice {name} has {count} requirements; leave one, in gate.requirements or in its scenario's pack"
        for name, count in sorted(counts.items())
        if count > 1
    )


def limits(rules: Gate, metrics: Mapping[str, Score]) -> tuple[Finding, ...]:
    """A finding for each limit; a share that was not measured is an objection."""
    return tuple(_held(limit, metrics) for limit in rules.limits)


def _held(limit: Limit, metrics: Mapping[str, Score]) -> Finding:
    score = metrics.get(limit.metric)
    if score is None or score.n == 0:
        known = ", ".join(sorted(metrics)) or "none"
        return objection(limit.metric, f"no answer was counted for it; mend the limit or the pack (measured: {known})")
    low, high = limit.minimum or 0.0, 1.0 if limit.maximum is None else limit.maximum
    share = f"{score.correct:g} of {score.n} ({score.share:.1%}, 95% interval {score.low:.1%} to {score.high:.1%})"
    return Finding(
        name=limit.metric,
        outcome="pass" if low <= score.share <= high else "fail",
        reason=f"{share}; {_allowed(limit)}",
        n=score.n,
    )


def _allowed(limit: Limit) -> str:
    least = f"at least {limit.minimum:.1%}" if limit.minimum is not None else ""
    most = f"at most {limit.maximum:.1%}" if limit.maximum is not None else ""
    return f"its limit is {' and '.join(filter(None, (least, most)))}"
