"""PSI and KS: what they are by their definitions, and that neither takes chance for change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from pipelines.monitoring.drift import CHANCE, compare, ks, psi, psi_by_chance

VALUES = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=60)
FEW = st.lists(st.integers(0, 3), min_size=1, max_size=60)
SAMPLES = st.one_of(VALUES, FEW)


@given(SAMPLES)
def test_what_is_identical_is_at_no_distance(values: list[float]) -> None:
    assert psi(values, values) == 0
    assert ks(values, values) == 0


@given(SAMPLES, SAMPLES)
def test_distances_are_distances(reference: list[float], current: list[float]) -> None:
    assert 0 <= psi(reference, current) < np.inf
    assert 0 <= ks(reference, current) <= 1
    assert ks(reference, current) == ks(current, reference)


@pytest.mark.filterwarnings("ignore:divide by zero")  # of its p-value, which is not asked for
@given(SAMPLES, SAMPLES)
def test_ks_is_scipys(reference: list[float], current: list[float]) -> None:
    assert ks(reference, current) == pytest.approx(stats.ks_2samp(reference, current, method="asymp").statistic)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=80), st.lists(st.integers(0, 4), min_size=5, max_size=80))
def test_psi_of_a_few_values_is_jeffreys_divergence_of_their_shares(reference: list[int], current: list[int]) -> None:
    # Every value that may come is a decile of the reference, so that each has a bin of its own.
    reference = [*reference, *range(5)] * 4
    reference = [value for value in range(5) for _ in range(reference.count(value) + len(reference))]
    counts = [np.bincount(side, minlength=5) + 0.5 for side in (reference, current)]
    p, q = (count / count.sum() for count in counts)
    expected = float(np.sum(special.rel_entr(p, q) + special.rel_entr(q, p)))
    assert psi(reference, current) == pytest.approx(expected)


@given(VALUES, VALUES, st.floats(0.5, 2.0), st.floats(-10, 10))
def test_neither_depends_on_the_unit(reference: list[float], current: list[float], scale: float, shift: float) -> None:
    def moved(values: list[float]) -> list[float]:
        return [round(value, 3) * 2.0 ** round(scale) + round(shift) for value in values]

    rounded = [[round(value, 3) for value in side] for side in (reference, current)]
    again = [moved(reference), moved(current)]
    if [len(set(side)) for side in rounded] == [len(set(side)) for side in again]:  # no value was lost to rounding
        assert ks(*again) == pytest.approx(ks(*rounded))
        assert psi(*again) == pytest.approx(psi(*rounded))


def test_one_size_of_images_is_told_from_another_on_either_side() -> None:
    for other in (0.5, 2.0):
        assert psi([1.0] * 300, [other] * 300) > 5
        assert ks([1.0] * 300, [other] * 300) == 1


def test_a_share_that_moves_is_seen() -> None:
    before, now = [0.0] * 990 + [1.0] * 10, [0.0] * 700 + [1.0] * 300
    found = compare("refused", before, now, threshold=0.25, min_samples=200)
    assert found.changed
    assert found.ks == pytest.approx(0.29)


@pytest.mark.parametrize("n", [200, 1000])
def test_chance_is_hardly_ever_taken_for_a_change(n: int) -> None:
    draw = np.random.default_rng(7)
    found = [
        compare("aspect", draw.normal(size=2000), draw.normal(size=n), threshold=1e-9, min_samples=200)
        for _ in range(400)
    ]
    assert sum(each.changed for each in found) <= 5  # 0.4 are expected
    bound = psi_by_chance(10, 2000, n)
    assert bound == pytest.approx(stats.chi2.ppf(1 - CHANCE, 9) * (1 / 2000 + 1 / n))
    assert np.mean([each.psi for each in found]) == pytest.approx(9 * (1 / 2000 + 1 / n), rel=0.15)


@settings(max_examples=20)
@given(st.integers(1, 199))
def test_too_few_samples_say_nothing(n: int) -> None:
    found = compare("aspect", [1.0] * 2000, [9.0] * n, threshold=0.25, min_samples=200)
    assert not found.enough
    assert not found.changed


def test_many_images_of_few_requests_say_nothing() -> None:
    found = compare("aspect", [1.0] * 2000, [3.0] * 400, threshold=0.25, min_samples=200, asked=(2000, 20))
    assert (found.n, found.enough, found.changed) == (20, False, False)
    assert found.psi_by_chance == psi_by_chance(2, 2000, 20)


def test_a_small_psi_is_no_change_however_certain() -> None:
    draw = np.random.default_rng(7)
    found = compare("x", draw.normal(size=50_000), draw.normal(0.1, size=50_000), threshold=0.25, min_samples=200)
    assert found.psi > found.psi_by_chance
    assert not found.changed


def test_nothing_is_compared_with_nothing() -> None:
    for sides in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ValueError, match="no samples"):
            psi(*sides)
