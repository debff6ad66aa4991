"""ANLS: text that is read from an image, forgiving some wrong characters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from rapidfuzz.distance import Levenshtein

from pipelines.scenarios.scorers.plain import accepted
from pipelines.scenarios.scorers.scorer import Scored, Scorer


class Anls(Scorer):
    """Average normalized Levenshtein similarity; the average is over the answers of the slice.

    1 - NL where NL, the edit distance by the length of the longer text, is below the threshold, else 0; the best of the
    accepted texts counts. Case and how much white space there is do not count. Source: Biten et al., Scene text visual
    question answering, ICCV 2019.
    """

    name: Literal["anls"]
    threshold: float = Field(0.5, gt=0, le=1)
    """From this share of wrong characters on, the answer is worth nothing."""

    @property
    def graded(self) -> bool:
        return True

    def score(self, answer: str, expected: str) -> Scored:
        return Scored(max(self._similarity(answer, text) for text in accepted(expected)))

    def ideal(self, expected: str) -> str:
        return accepted(expected)[0]

    def _similarity(self, answer: str, expected: str) -> float:
        distance = Levenshtein.normalized_distance(_folded(answer), _folded(expected))
        return 1 - distance if distance < self.threshold else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
