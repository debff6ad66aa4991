"""A category of a tree, such as a shop's: half right is better than wholly wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.scenarios.scorers.json_text import parse_json
from pipelines.scenarios.scorers.overlap import f1
from pipelines.scenarios.scorers.plain import plain
from pipelines.scenarios.scorers.scorer import Scored, Scorer


class Hierarchy(Scorer):
    """Hierarchical F1 of two paths from the root, `Audio > Headphones > In-ear`, or the same as a JSON list.

    F1 of the sets of each category with all its ancestors, the root apart, of every item by itself, as the gate pairs
    items. Source: Kiritchenko, Matwin and Famili, Functional annotation of genes using hierarchical text categorization
    (2005); recommended by Silla and Freitas, A survey of hierarchical classification across different application
    domains, Data Mining and Knowledge Discovery 22 (2011). The mark `top` says that the first category is right.
    """

    name: Literal["hierarchy"]
    separator: str = Field(">", min_length=1)
    """Between a category and the one below it."""

    @property
    def graded(self) -> bool:
        return True

    def score(self, answer: str, expected: str) -> Scored:
        ours, theirs = self._ancestors(answer), self._ancestors(expected)
        return Scored(f1(ours, theirs), {"top": any(len(path) == 1 and path in theirs for path in ours)})

    def objection(self, expected: str) -> str | None:
        return None if self._ancestors(expected) else "names no category"

    def _ancestors(self, text: str) -> frozenset[tuple[str, ...]]:
        """Each category of the path, as the path to it."""
        path = tuple(filter(None, map(plain, self._parts(text))))
        return frozenset(path[: depth + 1] for depth in range(len(path)))

    def _parts(self, text: str) -> list[str]:
        try:
            value = parse_json(text)
        except ValueError:
            return text.split(self.separator)
        return [str(part) for part in value] if isinstance(value, list) else text.split(self.separator)
