"""Whether what is asked differs from what was trained on: PSI and the Kolmogorov-Smirnov distance of one feature.

Either says that the input changed. Neither says that answers became worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.artifact import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS = 10
"""Deciles of the reference, as is usual for PSI."""

CHANCE = 0.001
"""How often chance alone may pass for a change."""


class Comparison(Artifact):
    """One feature of what is asked, against the training set's."""

    feature: str
    n: int
    """Requests in service that have it."""

    n_reference: int
    """Rows of the training set that have it."""

    psi: float
    psi_by_chance: float
    """What PSI stays below in 999 of 1,000 cases where nothing changed."""

    ks: float
    """Largest distance of the two distribution functions, 0 to 1."""

    enough: bool
    """Whether there are samples enough to say anything."""

    changed: bool
    """The input changed."""


def compare(
    feature: str,
    reference: Sequence[float],
    current: Sequence[float],
    *,
    threshold: float,
    min_samples: int,
    asked: tuple[int, int] | None = None,
) -> Comparison:
    """Hold one feature's samples against the reference's.

    Args:
        threshold: PSI from which it counts as changed.
        min_samples: Fewer, on either side, say nothing.
        asked: In how many rows and requests the values came. Images of one request are alike, and no more evidence
            than one of them. None: each value in its own.

    Raises:
        ValueError: One side is empty.
    """
    n_reference, n = asked or (len(reference), len(current))
    counts = _counts(reference, current)
    found, chance = _psi(counts), psi_by_chance(len(counts), n_reference, n)
    enough = min(n_reference, n) >= min_samples
    return Comparison(
        feature=feature,
        n=n,
        n_reference=n_reference,
        psi=found,
        psi_by_chance=chance,
        ks=ks(reference, current),
        enough=enough,
        changed=enough and found > max(threshold, chance),
    )


def psi(reference: Sequence[float], current: Sequence[float]) -> float:
    """The population stability index: the sum over bins of (p - q) ln(p / q), which is Jeffreys' divergence.

    The bins are the reference's deciles; a value that a tenth of the reference has is a bin of its own, so that
    features with few values (a share, one image size) are compared by them. Half a sample is added to each bin that
    either side fills: an empty one would make it infinite.

    Source: Lewis, An Introduction to Credit Scoring (1994); Jeffreys, Proc. Royal Society A 186 (1946) for the
    divergence; Krichevsky and Trofimov, IEEE Trans. Information Theory 27 (1981) for the half.

    Raises:
        ValueError: One side is empty.
    """
    return _psi(_counts(reference, current))


def psi_by_chance(bins: int, n_reference: int, n: int) -> float:
    """What PSI stays below, but for CHANCE, when both sides come from one distribution.

    Source: Yurdakul, Statistical Properties of Population Stability Index (2018): PSI is distributed as
    (1/n + 1/m) times a chi square with bins - 1 degrees of freedom.

    Args:
        bins: Filled by either side.
    """
    from scipy.stats import chi2

    return 0.0 if bins < 2 else float(chi2.ppf(1 - CHANCE, bins - 1)) * (1 / n_reference + 1 / n)


def ks(reference: Sequence[float], current: Sequence[float]) -> float:
    """The two-sample Kolmogorov-Smirnov distance.

    Source: Smirnov, Annals of Mathematical Statistics 19 (1948).

    Raises:
        ValueError: One side is empty.
    """
    import numpy as np

    left, right = _sorted(reference), _sorted(current)
    both = np.concatenate([left, right])
    shares = [np.searchsorted(side, both, side="right") / len(side) for side in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def _psi(counts: NDArray[np.float64]) -> float:
    import numpy as np

    filled = counts + 0.5
    p, q = (filled / filled.sum(axis=0)).T
    return float(np.sum((p - q) * np.log(p / q)))


def _counts(reference: Sequence[float], current: Sequence[float]) -> NDArray[np.float64]:
    """Samples in each bin that either side fills: one row a bin, reference first."""
    import numpy as np

    left, right = _sorted(reference), _sorted(current)
    edges = np.unique(np.quantile(left, np.linspace(0, 1, BINS + 1)[1:-1], method="lower"))
    alike = np.searchsorted(left, edges, side="right") - np.searchsorted(left, edges, side="left")
    own = edges[alike * BINS >= len(left)]
    sides = [
        np.bincount(
            np.searchsorted(edges, side, side="left") + np.searchsorted(own, side, side="right"),
            minlength=len(edges) + len(own) + 1,
        )
        for side in (left, right)
    ]
    counts = np.stack(sides, axis=1).astype(np.float64)
    return np.asarray(counts[counts.sum(axis=1) > 0], dtype=np.float64)


def _sorted(values: Sequence[float]) -> NDArray[np.float64]:
    import numpy as np

    if len(values) == 0:
        raise ValueError("no samples to compare")
    return np.sort(np.asarray(values, dtype=np.float64))
