"""What every scorer is: a name, its options, and a function of an answer and what was expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from pipelines.section import Section


@dataclass(frozen=True)
class Scored:
    """What a scorer says of one answer."""

    score: float
    """0 to 1; 1 is wholly right."""

    marks: dict[str, bool] = field(default_factory=dict)
    """What else is to be counted of it, by name. An answer bears only the marks that concern it."""


class Scorer(Section, ABC):
    """A scorer with its options, as `pack.yaml` names it."""

    name: str

    @property
    def graded(self) -> bool:
        """Whether an answer can be right in part."""
        return False

    @abstractmethod
    def score(self, answer: str, expected: str) -> Scored:
        """Score an answer.

        Args:
            answer: As the model gave it.
            expected: Of the item: its text, or its value as JSON.
        """

    def objection(self, expected: str) -> str | None:  # noqa: ARG002  any text will do, unless a scorer says otherwise
        """Why this cannot be expected; None if it can."""
        return None

    def ideal(self, expected: str) -> str:
        """An answer that is wholly right."""
        return expected
