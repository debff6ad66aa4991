"""The models that the page sets side by side: base, merged, candidate, and the champion where that is the reference."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.charts import SCHEME_LABELS
from pipelines.evaluation import EvalReport, Evaluation
from pipelines.judgement.side import Side, read_side

SUBJECTS = {"base": "base", "merged": "merged", "candidate": "candidate"}


@dataclass(frozen=True)
class Column:
    """One measured model."""

    paint: str
    """Name of its colour, and of its mark in charts."""

    title: str
    side: Side

    @property
    def evaluation(self) -> Evaluation:
        """What was measured of it."""
        return self.side.evaluation


def columns(report: EvalReport, reference: Side | None) -> tuple[Column, ...]:
    """Every model that answered the candidate's questions, the candidate last."""
    found = []
    for subject, title in SUBJECTS.items():
        if (side := read_side(report, subject, title)) is not None:
            found.append(Column(subject, f"{title} {SCHEME_LABELS[side.evaluation.scheme]}", side))
    if reference is not None and _is_champion(reference, report):
        found.insert(max(len(found) - 1, 0), Column("champion", reference.name, reference))
    return tuple(found)


def _is_champion(reference: Side, report: EvalReport) -> bool:
    """Whether the reference is a champion that was asked the same, beside the candidate or in a run of its own."""
    if reference.report is report:
        return reference.evaluation.subject == "champion"
    return reference.report.test_digest == report.test_digest


def column(found: tuple[Column, ...], paint: str) -> Column | None:
    """The column of a model, if it was measured."""
    return next((each for each in found if each.paint == paint), None)


def overall(evaluation: Evaluation) -> float:
    """Right answers of all items, 0 to 1."""
    scores = evaluation.scores.values()
    return sum(score.correct for score in scores) / sum(score.n for score in scores)
