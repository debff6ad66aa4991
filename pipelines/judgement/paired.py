"""Two models on the same items: by what one is better or worse, with bounds that suit right answers or grades."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.evaluation import Answer
from pipelines.grades import Grades, mean, mean_bounds
from pipelines.grades import items_to_decide as graded_items_to_decide
from pipelines.judgement.side import Answers
from pipelines.scores import by_cluster, graded
from pipelines.statistics import Pairs, clustered_bounds, design_effect, items_to_decide, total


@dataclass(frozen=True)
class Comparison:
    """The candidate's answers against those of a reference."""

    score: str
    """The candidate's own, in words."""

    difference: float
    """Of the shares of right answers, or of the mean grades: -1 to 1."""

    lower: float
    """One-sided bound of the difference."""

    upper: float
    n: int
    wins: int
    """Items that the candidate answers better."""

    losses: int
    clusters: str
    """What is said of items that share images; empty if none do."""

    items_needed: int | None
    """About how many items would decide; None if no number would."""


def compared(answers: Answers, reference: Answers, threshold: float, confidence: float) -> Comparison:
    """Compare on all items of the candidate's answers.

    Args:
        answers: The candidate's that count.
        reference: Of at least the same items.
        threshold: What the difference is held against, for `items_needed`.
        confidence: Of each bound.
    """
    theirs = [reference[item] for item in answers]
    changes = [answer.grade - other.grade for answer, other in zip(answers.values(), theirs, strict=True)]
    clusters = by_cluster(zip(answers.values(), changes, strict=True))
    if graded(answers.values()) or graded(theirs):
        return _graded(answers.values(), clusters, threshold, confidence)
    return _right_or_wrong(answers.values(), clusters, threshold, confidence)


def pairs(clusters: Iterable[Sequence[float]]) -> tuple[Pairs, ...]:
    """Wins and losses of each cluster, from its items' changes of -1, 0 and 1."""
    return tuple(Pairs(changes.count(1), changes.count(-1), len(changes)) for changes in clusters)


def _right_or_wrong(
    answers: Iterable[Answer], clusters: Sequence[Sequence[float]], threshold: float, confidence: float
) -> Comparison:
    counted = pairs(clusters)
    items, effect, right = total(counted), design_effect(counted), sum(answer.correct for answer in answers)
    lower, upper = clustered_bounds(counted, confidence)
    return Comparison(
        score=f"{right} of {items.n} right ({right / items.n:.1%})",
        difference=(items.wins - items.losses) / items.n,
        lower=lower,
        upper=upper,
        n=items.n,
        wins=items.wins,
        losses=items.losses,
        clusters=f"{len(clusters)} groups of images, counted as {items.n / effect:.0f} items" if effect > 1 else "",
        items_needed=items_to_decide(items.wins, items.losses, items.n, threshold, confidence, effect),
    )


def _graded(
    answers: Iterable[Answer], clusters: Sequence[Sequence[float]], threshold: float, confidence: float
) -> Comparison:
    summed = [Grades(math.fsum(changes), len(changes)) for changes in clusters]
    changes, grades = [change for cluster in clusters for change in cluster], [answer.grade for answer in answers]
    lower, upper = mean_bounds(summed, confidence)
    return Comparison(
        score=f"mean grade {math.fsum(grades) / len(grades):.1%} of {len(grades)} items",
        difference=mean(summed),
        lower=lower,
        upper=upper,
        n=len(grades),
        wins=sum(change > 0 for change in changes),
        losses=sum(change < 0 for change in changes),
        clusters=f"{len(clusters)} groups of images" if len(clusters) < len(grades) else "",
        items_needed=graded_items_to_decide(summed, threshold, confidence),
    )
