"""Scores of answers, with intervals: how many are right, or what grades they have."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pipelines.evaluation import Answer, Score
from pipelines.grades import Grades, mean_bounds
from pipelines.statistics import wilson


def scores(answers: Iterable[Answer]) -> dict[str, Score]:
    """By slice."""
    by_slice: defaultdict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_slice[answer.slice].append(answer)
    return {name: score_of(found) for name, found in sorted(by_slice.items())}


def score_of(answers: Sequence[Answer]) -> Score:
    """The score of at least one answer: right or wrong with Wilson's interval, or grades with one by clusters."""
    correct, n = math.fsum(answer.grade for answer in answers), len(answers)
    low, high = mean_bounds(_grades(answers), 0.975, least=0) if graded(answers) else wilson(round(correct), n)
    return Score(correct=correct, n=n, low=low, high=high)


def graded(answers: Iterable[Answer]) -> bool:
    """Whether an answer is neither wholly right nor wholly wrong."""
    return any(answer.grade not in {0, 1} for answer in answers)


def by_cluster(valued: Iterable[tuple[Answer, float]]) -> list[list[float]]:
    """Values of answers, together where the questions show the same images; one without any is alone."""
    clusters: defaultdict[str, list[float]] = defaultdict(list)
    for answer, value in valued:
        clusters[f"images {answer.cluster}" if answer.cluster else f"item {answer.item}"].append(value)
    return list(clusters.values())


def _grades(answers: Sequence[Answer]) -> list[Grades]:
    clusters = by_cluster((answer, answer.grade) for answer in answers)
    return [Grades(math.fsum(values), len(values)) for values in clusters]
