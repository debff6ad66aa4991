"""The answers that changed: which the candidate lost, which it gained, and a fair choice of them to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipelines.evaluation import Answer
from pipelines.judgement.side import Side

SHOWN = 24
"""Of each kind."""


@dataclass(frozen=True)
class Change:
    """An item that the two models answered differently well."""

    before: Answer
    """Of the reference."""

    after: Answer

    @property
    def gain(self) -> float:
        """Grades, -1 to 1."""
        return self.after.grade - self.before.grade


@dataclass(frozen=True)
class Changes:
    """What changed between the reference and the candidate."""

    broken: tuple[Change, ...]
    fixed: tuple[Change, ...]
    reworded: int
    """Answers in other words that are just as right or wrong."""

    compared: int
    """Items that both answered."""


def changes(candidate: Side, reference: Side) -> Changes:
    """Every answer that is better or worse than the reference's, the largest change first."""
    pairs = [
        Change(reference.answers[item], after) for item, after in candidate.answers.items() if item in reference.answers
    ]
    broken = sorted((pair for pair in pairs if pair.gain < 0), key=lambda pair: pair.gain)
    fixed = sorted((pair for pair in pairs if pair.gain > 0), key=lambda pair: -pair.gain)
    reworded = sum(pair.gain == 0 and pair.before.text != pair.after.text for pair in pairs)
    return Changes(tuple(broken), tuple(fixed), reworded, len(pairs))


def dealt(found: Sequence[Change], most: int = SHOWN) -> tuple[Change, ...]:
    """At most so many, one slice after the other, so that a large slice hides no small one."""
    slices: defaultdict[str, list[Change]] = defaultdict(list)
    for change in found:
        slices[change.after.slice].append(change)
    rounds = (change for each in zip_longest(*slices.values()) for change in each if change is not None)
    return tuple(rounds)[:most]


def items_of(found: Collection[Change]) -> frozenset[str]:
    """Their items."""
    return frozenset(change.after.item for change in found)
