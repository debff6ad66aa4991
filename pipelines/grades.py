"""Intervals for means of grades, and of what grades changed, where items come in clusters. Pure functions.

A bound is the outer one of two. BCa's bootstrap is accurate to the second order, but knows only what was seen: where
few items differ it is too narrow, and has no width where none does. The other bound counts one more cluster, unseen,
all of whose items have the worst grade there is, and keeps its width; on answers that are right or wrong it is Clopper
and Pearson's. In simulations BCa's alone let up to nine of a hundred losses at the margin pass, both together at most
five (`tests/pipelines/test_grades.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 9_999
"""Of a bound; its error by chance is then about a fiftieth of a standard error."""

BATCH = 2**21
"""Numbers that are drawn at once: what keeps memory small."""


@dataclass(frozen=True)
class Grades:
    """Of one cluster, such as the questions about one image."""

    total: float
    """Sum over its items of grades, or of what they changed."""

    n: int
    """Items."""


def mean(clusters: Sequence[Grades]) -> float:
    """Over all items."""
    return math.fsum(cluster.total for cluster in clusters) / sum(cluster.n for cluster in clusters)


def mean_bounds(
    clusters: Sequence[Grades],
    confidence: float = 0.95,
    *,
    least: float = -1.0,
    most: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """One-sided lower and upper bound of the mean; each alone holds with the given confidence. The same every time.

    Args:
        clusters: At least one; they are resampled, not their items.
        confidence: Above 0.5.
        least: The lowest that an item can have: -1 of a difference of grades, 0 of a grade.
        most: The highest.
        resamples: Draws of each kind.
        seed: Of the draws.
    """
    import numpy as np

    totals = np.array([cluster.total for cluster in clusters], dtype=float)
    sizes = np.array([cluster.n for cluster in clusters], dtype=float)
    low, high = unseen_bounds(totals, sizes, confidence, (least, most), resamples, seed)
    if len(clusters) > 1 and np.ptp(totals / sizes) > 1e-9:  # otherwise every resample is the same
        inner_low, inner_high = bca_bounds(totals, sizes, confidence, resamples, seed)
        low, high = np.fmin(low, inner_low), np.fmax(high, inner_high)
    return max(least, float(low)), min(most, float(high))


def bca_bounds(
    totals: Floats, sizes: Floats, confidence: float, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap bounds of sum(totals) / sum(sizes), resampled together.

    Source: Efron, Better bootstrap confidence intervals, JASA 82 (1987); the jackknife leaves out whole clusters.

    Args:
        totals: One for each cluster, [clusters].
        sizes: Their items, [clusters].
    """
    import numpy as np
    from scipy.stats import bootstrap

    def ratio(drawn: Floats, items: Floats, axis: int = -1) -> Floats:
        found: Floats = drawn.sum(axis) / items.sum(axis)
        return found

    found = bootstrap(
        (totals, sizes),
        ratio,
        paired=True,
        vectorized=True,
        method="BCa",
        confidence_level=2 * confidence - 1,
        n_resamples=resamples,
        batch=max(1, BATCH // len(totals)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def unseen_bounds(
    totals: Floats,
    sizes: Floats,
    confidence: float,
    ends: tuple[float, float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds that allow for one more cluster of the usual size at the worst end of the range, and one at the best.

    The clusters and the unseen one are weighted at random, uniformly over all weights that sum to 1; the bounds are
    quantiles of the weighted mean. Source: Gaffke, Three test statistics for a nonparametric one-sided hypothesis on
    the mean of a nonnegative variable, Mathematical Methods of Statistics 14 (2005); Learned-Miller and Thomas, A new
    confidence interval for the mean of a bounded random variable, arXiv 1905.06208.

    Args:
        totals: One for each cluster, [clusters].
        sizes: Their items, [clusters].
        ends: The lowest and highest that an item can have.
    """
    import numpy as np

    generator, usual = np.random.default_rng(seed), usual_size(sizes)
    lows, highs = [], []
    for start in range(0, resamples, step := max(1, BATCH // len(totals))):
        weights = generator.standard_exponential((min(step, resamples - start), len(totals) + 1))
        drawn, items, unseen = weights[:, :-1] @ totals, weights[:, :-1] @ sizes, weights[:, -1] * usual
        lows.append((drawn + ends[0] * unseen) / (items + unseen))
        highs.append((drawn + ends[1] * unseen) / (items + unseen))
    return (
        float(np.quantile(np.concatenate(lows), 1 - confidence)),
        float(np.quantile(np.concatenate(highs), confidence)),
    )


def usual_size(sizes: Floats) -> float:
    """Of the cluster that an item is in, on average over items."""
    return float((sizes**2).sum() / sizes.sum())


def items_to_decide(
    clusters: Sequence[Grades], threshold: float, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """About how many items would decide whether the mean is above a threshold (or below it), with the given power.

    By the normal approximation, the unseen cluster included: |mean - threshold| = c / n + z_confidence sqrt(s^2 / n +
    c^2 / n^2) + z_power s / sqrt(n), where s^2 is the variance of clusters for each item, and c their usual size times
    how far the mean is from the end of the range. Where no item differs, the bound falls by -ln(1 - confidence) c / n.

    Args:
        clusters: With changes of grades, so that the range is -1 to 1.

    Returns:
        More than there are; None if the mean is the threshold itself, which no number of items would decide.
    """
    import numpy as np
    from scipy.optimize import brentq

    centre, n = mean(clusters), sum(cluster.n for cluster in clusters)
    if (gap := abs(centre - threshold)) < 1e-9:
        return None
    deviation, usual = math.sqrt(_variance(clusters)), usual_size(np.array([c.n for c in clusters], dtype=float))
    unseen = usual * (1 + centre if centre > threshold else 1 - centre)
    z_confidence, z_power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)

    def missing(x: float) -> float:  # of the gap, with 1 / x^2 items
        seen, expected = deviation * x, unseen * x * x
        return expected + z_confidence * math.hypot(seen, expected) + z_power * seen - gap

    x: float = brentq(missing, 0, math.sqrt(gap / unseen))
    return max(n + 1, math.ceil(x**-2), math.ceil(-math.log(1 - confidence) * unseen / gap))


def _variance(clusters: Sequence[Grades]) -> float:
    """Of the sum of all differences, for each item; one cluster says nothing of it, so that all of it may change."""
    n, count, centre = sum(c.n for c in clusters), len(clusters), mean(clusters)
    if count == 1:
        return float(n)
    return math.fsum((c.total - c.n * centre) ** 2 for c in clusters) * count / (count - 1) / n
