"""Why two models cannot be compared at all. Whatever is missing, unfinished or not a number is an objection."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate
from pipelines.evaluation import COMPLETE
from pipelines.judgement.scenario_rules import scenario_objections
from pipelines.judgement.side import Answers, Side, objection


def objections(rules: Gate, candidate: Side | None, reference: Side | None) -> tuple[Finding, ...]:
    """Every reason at once; none if the two can be compared.

    Args:
        rules: Those of the candidate's scenarios included.
    """
    if candidate is None or reference is None:
        missing = "candidate" if candidate is None else "reference"
        return (objection("evaluation", f"the {missing} was not measured; evaluate it"),)
    reasons = [*scenario_objections(rules, candidate, reference), *_other_questions(candidate, reference)]
    reasons += _slices(rules, candidate.answers)
    for side in (candidate, reference):
        reasons += [*_unfinished(side), *_not_numbers(side)]
    return tuple(objection("evaluation", reason) for reason in reasons)


def _other_questions(candidate: Side, reference: Side) -> Iterator[str]:
    ours, theirs = candidate.report, reference.report
    if ours.test_digest != theirs.test_digest:
        yield (
            f"{reference.name} answered other questions (test split {theirs.test_digest[:12]}, here "
            f"{ours.test_digest[:12]}); {reference.way_out}"
        )
    if ours.prompt_digest != theirs.prompt_digest:
        yield (
            f"{reference.name} was asked with another prompt or other pixel limits ({theirs.prompt_digest[:12]}, here "
            f"{ours.prompt_digest[:12]}); {reference.way_out}"
        )
    if alone := candidate.answers.keys() ^ reference.answers.keys():
        yield f"{len(alone)} items were answered by only one of the two, such as {min(alone)}"


def _slices(rules: Gate, answers: Answers) -> Iterator[str]:
    required = {requirement.slice for requirement in rules.requirements}
    present = {answer.slice for answer in answers.values()}
    yield from (f"slice {name} was not measured" for name in sorted(required - present))
    yield from (f"slice {name} has no requirement; add one to gate.requirements" for name in sorted(present - required))


def _unfinished(side: Side) -> Iterator[str]:
    items = [item for item, answer in side.answers.items() if answer.finish_reason not in COMPLETE]
    if items:
        yield f"{len(items)} answers of the {side.name} did not finish, such as {items[0]}"


def _not_numbers(side: Side) -> Iterator[str]:
    evaluation = side.evaluation
    figures = {name: value for name, value in evaluation if isinstance(value, float)}
    for name, score in (evaluation.scores | evaluation.metrics).items():
        figures |= {f"{name}.{field}": value for field, value in score if isinstance(value, float)}
    for name, value in figures.items():
        if not math.isfinite(value):
            yield f"{name} of the {side.name} is {value}; evaluate it again"
