"""Is the candidate as good as the reference, item by item? Surely, surely not, or not enough items to say."""

from __future__ import annotations

import math
from typing import Literal

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate, Requirement
from pipelines.judgement.paired import Comparison, compared
from pipelines.judgement.side import Side, objection

Outcome = Literal["pass", "fail", "inconclusive"]


def quality(rules: Gate, candidate: Side, reference: Side, merged: Side | None) -> tuple[Finding, ...]:
    """A finding for each requirement, and one for what the scheme costs where the merged model was measured.

    All must pass, each at the full confidence: a candidate that is really inferior somewhere passes only if it passes
    there, which is as likely as that one test allows, however many others there are. Source: Berger, Multiparameter
    hypothesis testing and acceptance sampling, Technometrics 24 (1982), on intersection-union tests.
    """
    found = tuple(_required(requirement, candidate, reference, rules.confidence) for requirement in rules.requirements)
    return found if merged is None else (*found, _cost_of_scheme(rules, candidate, merged))


def _required(requirement: Requirement, candidate: Side, reference: Side, confidence: float) -> Finding:
    answers = {item: answer for item, answer in candidate.answers.items() if answer.slice == requirement.slice}
    found = compared(answers, reference.answers, requirement.threshold, confidence)
    if math.fsum(answer.grade for answer in answers.values()) / found.n < requirement.minimum:
        reason = f"{found.score} is below the minimum {requirement.minimum:.1%}"
        return _finding(requirement.slice, "fail", reason, found, requirement.threshold)
    return judged(requirement.slice, found, reference.name, requirement.threshold, confidence)


def _cost_of_scheme(rules: Gate, candidate: Side, merged: Side) -> Finding:
    if candidate.answers.keys() != merged.answers.keys():
        return objection("quantization", "the merged bf16 model answered other items; evaluate it again")
    threshold = -rules.quantization_margin
    found = compared(candidate.answers, merged.answers, threshold, rules.confidence)
    return judged("quantization", found, merged.name, threshold, rules.confidence)


def judged(name: str, found: Comparison, reference: str, threshold: float, confidence: float) -> Finding:
    """Pass when the difference is surely above the threshold, fail when it is surely below.

    Args:
        name: Of the finding.
        reference: What reasons call it.
        threshold: Not above 0: what may be lost, as a share of the items; at 0 the candidate must be better.
    """
    figures, (above, below, between) = _figures(found, reference, confidence), _verdicts(threshold)
    if found.lower > threshold:
        return _finding(name, "pass", f"{figures}: {above}", found, threshold)
    if found.upper < threshold:
        return _finding(name, "fail", f"{figures}: {below}", found, threshold)
    reason = f"{figures}: {between}; {_way_out(found, threshold)}"
    return _finding(name, "inconclusive", reason, found, threshold)


def _finding(name: str, outcome: Outcome, reason: str, found: Comparison, threshold: float) -> Finding:
    return Finding(
        name=name,
        outcome=outcome,
        reason=reason,
        items_needed=found.items_needed if outcome == "inconclusive" else None,
        difference=found.difference,
        lower=found.lower,
        upper=found.upper,
        threshold=threshold,
        n=found.n,
        wins=found.wins,
        losses=found.losses,
    )


def _verdicts(threshold: float) -> tuple[str, str, str]:
    """What is said of a difference that is surely above, surely below, or neither."""
    if threshold == 0:
        return "surely better", "surely worse", "it may be no better"
    loss = f"loss beyond {-threshold * 100:g} points"
    return f"surely no {loss}", f"surely a {loss}", f"a {loss} is possible"


def _way_out(found: Comparison, threshold: float) -> str:
    if found.items_needed is None:
        return "at the observed rates no number of items would decide"
    verdict = "for it" if found.difference > threshold else "against it"
    return f"about {found.items_needed} items would decide, at the observed rates {verdict}"


def _figures(found: Comparison, reference: str, confidence: float) -> str:
    bounds = f"{confidence:.0%} bounds {_points(found.lower)} and {_points(found.upper)}"
    counts = f"wins {found.wins}, losses {found.losses}"
    shared = f"; {found.clusters}" if found.clusters else ""
    return f"{found.score}, {_points(found.difference)} points against {reference} ({counts}; {bounds}{shared})"


def _points(share: float) -> str:
    return f"{round(share * 100, 1) + 0.0:+.1f}"  # + 0.0: no minus before zero
