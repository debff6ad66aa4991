"""How much two collections have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable


def f1(answered: Iterable[Hashable], expected: Iterable[Hashable]) -> float:
    """Harmonic mean of precision and recall, each value as often as it occurs; 1 if both are empty.

    2 |A and E| / (|A| + |E|). Source: van Rijsbergen, Information Retrieval (1979), chapter 7.
    """
    ours, theirs = Counter(answered), Counter(expected)
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0
