"""May this candidate replace what serves? Pure rules over answers, and the step that applies them.

The rules fail closed: a missing answer, a missing slice, an unfinished answer or a report of other questions is an
objection, never a pass. A difference that the items cannot decide is inconclusive, which does not pass either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pipelines.answers import read_answers
from pipelines.artifacts import Answer, EvalReport, Evaluation, Finding, GateDecision
from pipelines.charts import accuracy_chart
from pipelines.config import Config, Gate, Requirement
from pipelines.registry import Registry
from pipelines.settings import Settings
from pipelines.statistics import items_to_decide, paired_bounds

log = logging.getLogger(__name__)

Answers = Mapping[str, Answer]
"""By item."""

FINISHED = {"stop", "length"}
"""Reasons to end an answer that are not a fault of the server."""


def gate(config: Config, folder: Path, report: EvalReport) -> GateDecision:
    """Compare the candidate with the champion, or with the base while there is no champion.

    Raises:
        Unreachable: The registry cannot say who the champion is.
    """
    registry = Registry(Settings(), config.registry.model)
    champion = registry.by_alias("champion")
    if champion is None:
        name, reference, reference_report = "base", report.subject("base"), report
    else:
        name = f"champion v{champion.version}"
        reference_report = registry.report(champion, folder / "champion")
        reference = reference_report.subject("candidate")
    decision = decide(
        config.gate, report, reference_report, name, _answers(report.subject("candidate")), _answers(reference),
        _answers(report.subject("merged")),
    )  # fmt: skip
    accuracy_chart(report, folder / "accuracy.png")
    for finding in decision.findings:
        log.info("%s %s: %s", finding.outcome.upper(), finding.name, finding.reason)
    return decision


def decide(
    rules: Gate,
    report: EvalReport,
    reference_report: EvalReport,
    reference_name: str,
    candidate: Answers | None,
    reference: Answers | None,
    merged: Answers | None,
) -> GateDecision:
    """The gate's decision; the worst finding decides.

    Args:
        candidate: The candidate's answers as it was served.
        reference: The answers of what it would replace.
        merged: The answers of the merged bf16 model, where it was measured.
    """
    findings = objections(rules, report, reference_report, candidate, reference)
    if not findings and candidate is not None and reference is not None:
        findings = tuple(
            _compare(requirement, reference_name, _slice(candidate, requirement), reference, rules.confidence)
            for requirement in rules.requirements
        )
        if merged is not None:
            findings += (_cost_of_quantization(rules, candidate, merged),)
    return GateDecision(outcome=_worst(findings), reference=reference_name, findings=findings)


def objections(
    rules: Gate,
    report: EvalReport,
    reference_report: EvalReport,
    candidate: Answers | None,
    reference: Answers | None,
) -> tuple[Finding, ...]:
    """Why the two cannot be compared at all."""
    if candidate is None or reference is None:
        missing = "candidate" if candidate is None else "reference"
        return (_objection("evaluation", f"the {missing} was not measured; evaluate it"),)
    found = []
    if report.test_digest != reference_report.test_digest:
        found.append("the reference answered other questions; evaluate it again on these")
    if report.prompt_digest != reference_report.prompt_digest:
        found.append("the reference was asked with another prompt or other pixel limits; evaluate it again")
    if candidate.keys() != reference.keys():
        found.append(f"{len(candidate.keys() ^ reference.keys())} items were answered by only one of the two")
    unfinished = [item for item, answer in candidate.items() if answer.finish_reason not in FINISHED]
    if unfinished:
        found.append(f"{len(unfinished)} answers did not finish, such as {unfinished[0]}")
    required = {requirement.slice for requirement in rules.requirements}
    present = {answer.slice for answer in candidate.values()}
    found += [f"slice {name} was not measured" for name in sorted(required - present)]
    found += [f"slice {name} has no requirement; add one to gate.requirements" for name in sorted(present - required)]
    return tuple(_objection("evaluation", reason) for reason in found)


def _objection(name: str, reason: str) -> Finding:
    return Finding(name=name, outcome="fail", reason=reason)


def _answers(evaluation: Evaluation | None) -> Answers | None:
    return None if evaluation is None else read_answers(evaluation.answers)


def _slice(answers: Answers, requirement: Requirement) -> Answers:
    return {item: answer for item, answer in answers.items() if answer.slice == requirement.slice}


def _compare(
    requirement: Requirement, reference_name: str, candidate: Answers, reference: Answers, confidence: float
) -> Finding:
    n = len(candidate)
    right = sum(answer.correct for answer in candidate.values())
    if right < requirement.minimum * n:
        reason = f"{right} of {n} right ({right / n:.1%}) is below the minimum {requirement.minimum:.1%}"
        return _objection(requirement.slice, reason)
    return _not_worse(requirement.slice, reference_name, candidate, reference, requirement.margin, confidence)


def _cost_of_quantization(rules: Gate, candidate: Answers, merged: Answers) -> Finding:
    if candidate.keys() != merged.keys():
        return _objection("quantization", "the merged bf16 model answered other items; evaluate it again")
    return _not_worse("quantization", "merged bf16", candidate, merged, rules.quantization_margin, rules.confidence)


def _not_worse(
    name: str, reference_name: str, candidate: Answers, reference: Answers, margin: float, confidence: float
) -> Finding:
    """Non-inferiority: pass when the loss is surely below the margin, fail when it is surely above."""
    n = len(candidate)
    wins = sum(a.correct and not reference[item].correct for item, a in candidate.items())
    losses = sum(not a.correct and reference[item].correct for item, a in candidate.items())
    right = sum(answer.correct for answer in candidate.values())
    lower, upper = paired_bounds(wins, losses, n, confidence)
    figures = (
        f"{right} of {n} right ({right / n:.1%}), {(wins - losses) / n * 100:+.1f} points against {reference_name} "
        f"(wins {wins}, losses {losses}; {confidence:.0%} bounds {lower * 100:+.1f} and {upper * 100:+.1f})"
    )
    if lower > -margin:
        return Finding(name=name, outcome="pass", reason=f"{figures}: surely no loss beyond {margin * 100:g} points")
    if upper < -margin:
        return _objection(name, f"{figures}: surely a loss beyond {margin * 100:g} points")
    need = items_to_decide(wins, losses, n, margin, confidence)
    reason = f"{figures}: a loss beyond {margin * 100:g} points is possible; about {need} items would decide"
    return Finding(name=name, outcome="inconclusive", reason=reason)


def _worst(findings: tuple[Finding, ...]) -> str:
    outcomes = {finding.outcome for finding in findings} or {"fail"}
    return next(outcome for outcome in ("fail", "inconclusive", "pass") if outcome in outcomes)
