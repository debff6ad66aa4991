"""The answer says what is expected, however it is written."""

from __future__ import annotations

from typing import Literal

from pipelines.scenarios.scorers.plain import accepted, plain
from pipelines.scenarios.scorers.scorer import Scored, Scorer


class Text(Scorer):
    """Equal in plain form: forms of characters, case, punctuation and white space do not count.

    A JSON list of texts is expected where each of them is right.
    """

    name: Literal["text"]

    def score(self, answer: str, expected: str) -> Scored:
        return Scored(float(plain(answer) in map(plain, accepted(expected))))

    def ideal(self, expected: str) -> str:
        return accepted(expected)[0]
