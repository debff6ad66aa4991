"""Intervals for shares and for paired differences of shares. Pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Pairs:
    """Items that two models answered, counted by who was right: of one cluster, or of all."""

    wins: int
    """Items that only the new model answers rightly."""

    losses: int
    """Items that only the old model answers rightly."""

    n: int
    """All items."""


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


def paired_bounds(wins: float, losses: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided lower and upper bound of the difference of two paired shares, (wins - losses) / n.

    Each bound alone holds with about the given confidence: at 95 %, 3 to 7 % of the bounds are wrong, as counts come in
    steps. Unlike Wald's or the bootstrap's, the interval keeps its width when no item is discordant. Source: Tango,
    Equivalence test and confidence interval for the difference in proportions for the paired-sample design, Statistics
    in Medicine 17 (1998).

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


def clustered_bounds(clusters: Sequence[Pairs], confidence: float = 0.95) -> tuple[float, float]:
    """The same where items come in clusters, such as several questions about one image.

    Every count is divided by the design effect, as in Rao and Scott, A simple method for the analysis of clustered
    binary data, Biometrics 48 (1992). With one item in each cluster these are exactly `paired_bounds`.
    """
    all_items, effect = total(clusters), design_effect(clusters)
    return paired_bounds(all_items.wins / effect, all_items.losses / effect, all_items.n / effect, confidence)


def total(clusters: Sequence[Pairs]) -> Pairs:
    """The items of all clusters."""
    return Pairs(sum(c.wins for c in clusters), sum(c.losses for c in clusters), sum(c.n for c in clusters))


def clustered_variance(clusters: Sequence[Pairs], difference: float) -> float:
    """Variance of wins - losses over at least two clusters, whatever the items of a cluster have in common.

    Source: Obuchowski, On the comparison of correlated proportions for clustered data, Statistics in Medicine 17
    (1998), in the form of Yang, Sun and Hardin, Biometrical Journal 52 (2010).

    Args:
        difference: Of the shares, as it is supposed to be.
    """
    squares = sum((c.wins - c.losses - c.n * difference) ** 2 for c in clusters)
    return squares * len(clusters) / (len(clusters) - 1)


def design_effect(clusters: Sequence[Pairs]) -> float:
    """By what factor clusters raise the variance of the difference above that of independent items; at least 1.

    One more cluster of the usual size, all of whose items changed alike, is counted as if it had been seen. Few
    discordant items, or none, would otherwise say that items are independent, and a gate would pass what it has not
    tried; with no discordant item each cluster now counts as one item. What it adds fades as discordant items grow.
    """
    items = total(clusters)
    if len(clusters) == items.n:
        return 1.0
    if len(clusters) == 1:
        return float(items.n)
    usual = sum(c.n**2 for c in clusters) / items.n
    difference = (items.wins - items.losses) / items.n
    independent = items.wins + items.losses - items.n * difference**2
    return max(1.0, (clustered_variance(clusters, difference) + usual**2) / (independent + usual))


def items_to_decide(
    wins: int, losses: int, n: int, threshold: float, confidence: float = 0.95, effect: float = 1.0
) -> int | None:
    """About how many items would decide whether the difference is above a threshold, in four of five cases, if wins and
    losses stay as frequent as they were.

    Args:
        threshold: What the difference is held against: -0.02 where a loss of two points is tolerated.
        effect: The design effect of clusters.

    Returns:
        More than `n`; None if the difference is the threshold itself, which no number of items would decide.
    """
    if abs(wins - losses - threshold * n) < 1e-9:
        return None
    return max(n + 1, math.ceil(effect * planned_items(wins / n, losses / n, threshold, confidence)))


def planned_items(wins: float, losses: float, threshold: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """Items for which the difference is found to be above a threshold (or below it) with the given power.

    ((z_confidence s0 + z_power s1) / (difference - threshold))^2, where s0^2 is the variance of an item if the
    difference were the threshold, as Tango's bounds suppose it, and s1^2 the true one. Source: Nam, Establishing
    equivalence of two treatments and sample size requirements in matched-pairs design, Biometrics 53 (1997).

    Args:
        wins: Share of the items that only the new model answers rightly.
        losses: Share of the items that only the old model answers rightly.
        threshold: Not the difference itself.
    """
    difference = wins - losses
    supposed = max(0.0, _variance(wins, losses, 1, threshold))
    true = max(0.0, wins + losses - difference**2)
    z_confidence, z_power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)
    spread = z_confidence * math.sqrt(supposed) + z_power * math.sqrt(true)
    return (spread / (difference - threshold)) ** 2


def _score(wins: float, losses: float, n: float, difference: float) -> float:
    """Tango's statistic: how many standard errors the observed difference lies above a supposed one."""
    variance = _variance(wins, losses, n, difference)
    distance = wins - losses - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _variance(wins: float, losses: float, n: float, difference: float) -> float:
    """Of wins - losses, if the difference of the shares were the supposed one: by restricted maximum likelihood."""
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    nuisance = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return n * (2 * nuisance + difference * (1 - difference))


def _where(falling: Callable[[float], float]) -> float:
    """The difference in -1..1 at which a falling function crosses zero; the end of the range if it does not."""
    low, high = -1.0, 1.0
    for _ in range(60):  # halves the range to below 1e-17
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2
