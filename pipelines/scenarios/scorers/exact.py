"""The answer is an expected text, white space at the ends apart."""

from __future__ import annotations

from typing import Literal

from pipelines.scenarios.scorers.plain import accepted
from pipelines.scenarios.scorers.scorer import Scored, Scorer


class Exact(Scorer):
    """Character by character. A JSON list of texts is expected where each of them is right."""

    name: Literal["exact"]

    def score(self, answer: str, expected: str) -> Scored:
        return Scored(float(answer.strip() in map(str.strip, accepted(expected))))

    def ideal(self, expected: str) -> str:
        return accepted(expected)[0]
