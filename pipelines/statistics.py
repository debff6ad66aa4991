"""Intervals for shares and for paired differences of shares. Pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a share.

    Source: Wilson, Probable inference, JASA 22 (1927).

    Args:
        correct: Right answers.
        n: All answers, at least 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / n, z * z / n
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def paired_bounds(wins: int, losses: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided lower and upper bound of the difference of two paired shares, (wins - losses) / n.

    Each bound alone holds with the given confidence. Unlike Wald's or the bootstrap's, the interval keeps its width
    when no item is discordant. Source: Tango, Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design, Statistics in Medicine 17 (1998).

    Args:
        wins: Items that only the new model answers rightly.
        losses: Items that only the old model answers rightly.
        n: All items, at least 1.
    """
    z = NormalDist().inv_cdf(confidence)
    return (
        _where(lambda difference: _score(wins, losses, n, difference) - z),
        _where(lambda difference: _score(wins, losses, n, difference) + z),
    )


def items_to_decide(wins: int, losses: int, n: int, margin: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """About how many items would decide a non-inferiority question at the observed rates.

    n = ((z_confidence + z_power) / (margin + difference))^2 (discordant share - difference^2); one discordant item is
    assumed where none was seen.

    Args:
        margin: Largest tolerated loss, 0 to 1.
    """
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    difference = (wins - losses) / n
    distance = max(abs(margin + difference), 1 / n)
    variance = max(wins + losses, 1) / n - difference**2
    return max(n + 1, math.ceil((z / distance) ** 2 * variance))


def _score(wins: int, losses: int, n: int, difference: float) -> float:
    """Tango's statistic: how many standard errors the observed difference lies above a supposed one."""
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    nuisance = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    distance = wins - losses - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _where(falling: Callable[[float], float]) -> float:
    """The difference in -1..1 at which a falling function crosses zero; the end of the range if it does not."""
    low, high = -1.0, 1.0
    for _ in range(60):  # halves the range to below 1e-17
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
