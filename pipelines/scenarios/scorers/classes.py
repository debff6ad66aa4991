"""One class of several, such as a finding: what is missed, what is seen wrongly, and what the model leaves open."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.scenarios.scorers.plain import plain
from pipelines.scenarios.scorers.scorer import Scored, Scorer

ABSTAINED = ""
"""In place of a class; no class has this name."""


class Classes(Scorer):
    """1 where the class is right, 0 where it is wrong, unclear or left open.

    Marks, whose shares over a slice are the rates: `sensitivity/CLASS` on each answer about that class, whether it was
    named; `specificity/CLASS` on each answer about another, whether it was not named; `abstained` on each answer about
    a class; `recognised` on all, whether one class was named or the question left open. To leave open what has a class
    lowers sensitivity, and no specificity. An abstention phrase may be what is expected.
    """

    name: Literal["classes"]
    labels: dict[str, tuple[str, ...]] = Field(min_length=2)
    """Each class, with other words for it."""

    abstain: tuple[str, ...] = ()
    """Phrases that leave the question open, such as `cannot tell`."""

    match: Literal["whole", "within"] = "whole"
    """The answer is the class and nothing else, in plain form; or it holds its words, and those of no other. Beware of
    `no fracture` in the second case: give such phrases to the class that they mean, as the longest phrase counts."""

    abstention_score: float = Field(0.0, ge=0, lt=1)
    """What it is worth to leave open what has a class."""

    @model_validator(mode="after")
    def _unmistakable(self) -> Self:
        phrases = [plain(phrase) for phrase, _ in self._pairs()]
        if twice := sorted({phrase for phrase in phrases if phrases.count(phrase) > 1}):
            raise ValueError(f"{', '.join(map(repr, twice))} would name two things; case and punctuation do not count")
        if "" in phrases or ABSTAINED in self.labels:
            raise ValueError("a class or phrase is empty")
        return self

    @property
    def graded(self) -> bool:
        return self.abstention_score > 0

    def score(self, answer: str, expected: str) -> Scored:
        named, meant = self._named(answer), self._named(expected)
        right, abstained = len(named) == 1 and named == meant, named == {ABSTAINED}
        marks = {"recognised": len(named) == 1}
        for label in self.labels:
            says = named == {label}
            marks |= {f"sensitivity/{label}": says} if meant == {label} else {f"specificity/{label}": not says}
        if meant == {ABSTAINED}:
            return Scored(float(right), marks)
        return Scored(self.abstention_score if abstained else float(right), marks | {"abstained": abstained})

    def objection(self, expected: str) -> str | None:
        known = f"the classes are {', '.join(self.labels)}"
        return None if len(self._named(expected)) == 1 else f"names no class, or several; {known}"

    def _pairs(self) -> list[tuple[str, str]]:
        """Each phrase with the class that it means."""
        of_classes = [(phrase, label) for label, others in self.labels.items() for phrase in (label, *others)]
        return [*of_classes, *((phrase, ABSTAINED) for phrase in self.abstain)]

    @cached_property
    def _phrases(self) -> dict[str, str]:
        """The longest first."""
        pairs = sorted(self._pairs(), key=lambda pair: -len(plain(pair[0])))
        return {plain(phrase): label for phrase, label in pairs}

    def _named(self, text: str) -> set[str]:
        """The classes that a text names."""
        words = plain(text)
        if self.match == "whole":
            return {self._phrases[words]} if words in self._phrases else set()
        left, named = words, set()
        for phrase, label in self._phrases.items():
            left, count = re.subn(rf"(?<!\S){re.escape(phrase)}(?!\S)", "\n", left)  # no phrase goes on beyond a line
            if count:
                named.add(label)
        return named
