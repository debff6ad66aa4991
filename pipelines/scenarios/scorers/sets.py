"""Several values in any order."""

from __future__ import annotations

import re
from typing import Literal

from pipelines.scenarios.scorers.json_text import parse_json
from pipelines.scenarios.scorers.overlap import f1
from pipelines.scenarios.scorers.plain import plain
from pipelines.scenarios.scorers.scorer import Scored, Scorer

BETWEEN = re.compile(r"[,;\n]")


class Set(Scorer):
    """F1 of two sets, elements in plain form.

    Either is a JSON list, or text with commas, semicolons or line ends between the elements. How often an element is
    said does not count. The mark `complete` says that none is missing.
    """

    name: Literal["set"]

    @property
    def graded(self) -> bool:
        return True

    def score(self, answer: str, expected: str) -> Scored:
        ours, theirs = elements(answer), elements(expected)
        return Scored(f1(ours, theirs), {"complete": theirs <= ours})


def elements(text: str) -> frozenset[str]:
    """The elements that a text lists."""
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    parts = map(str, value) if isinstance(value, list) else BETWEEN.split(text)
    return frozenset(filter(None, map(plain, parts)))
