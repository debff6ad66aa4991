"""One of the two models that are compared, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.answers import read_answers
from pipelines.artifacts import Finding
from pipelines.evaluation import Answer, EvalReport, Evaluation

Answers = Mapping[str, Answer]
"""By item."""


@dataclass(frozen=True)
class Side:
    """A measured model."""

    name: str
    """As reasons call it: `candidate`, `base`, `champion v3`."""

    report: EvalReport
    evaluation: Evaluation
    answers: Answers
    way_out: str = "evaluate it again with the questions and packs of the candidate"
    """What to do where it cannot be compared with."""


def read_side(report: EvalReport, subject: str, name: str) -> Side | None:
    """One subject of a report with its answers, or None when it was not measured."""
    evaluation = report.subject(subject)
    return None if evaluation is None else Side(name, report, evaluation, read_answers(evaluation.answers))


def objection(name: str, reason: str) -> Finding:
    """A finding that refuses the candidate."""
    return Finding(name=name, outcome="fail", reason=reason)
