"""Shares of marked answers: schema-valid ones, abstentions, sensitivity and specificity of each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipelines.evaluation import Answer, Score
from pipelines.statistics import wilson


def marked_shares(answers: Iterable[Answer]) -> dict[str, Score]:
    """By `slice/mark`; of the answers of the slice that bear the mark at all."""
    marks: defaultdict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        for name, mark in answer.marks.items():
            marks[f"{answer.slice}/{name}"].append(mark)
    return {name: _share(sum(found), len(found)) for name, found in sorted(marks.items())}


def _share(marked: int, n: int) -> Score:
    low, high = wilson(marked, n)
    return Score(correct=marked, n=n, low=low, high=high)
