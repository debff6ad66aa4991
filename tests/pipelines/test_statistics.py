"""Known answers from the literature, properties, and a simulation of the error that the gate may make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipelines.statistics import items_to_decide, paired_bounds, wilson


def test_tango_known_answer() -> None:
    """Airway hyper-responsiveness, 21 children: Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014)."""
    lower, upper = paired_bounds(1, 7, 21, confidence=0.975)
    assert (round(lower, 3), round(upper, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("losses", "points"), [(0, 0.45), (1, 0.74), (3, 1.24), (8, 2.35)])
def test_tango_keeps_its_width_with_few_discordant_items(losses: int, points: float) -> None:
    lower, _ = paired_bounds(0, losses, 600)
    assert round(-100 * lower, 2) == points


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_bounds_enclose_the_difference_and_mirror(n: int, wins: int, losses: int) -> None:
    assume(wins + losses <= n)
    lower, upper = paired_bounds(wins, losses, n)
    assert -1 <= lower <= (wins - losses) / n + 1e-9
    assert (wins - losses) / n - 1e-9 <= upper <= 1
    assert paired_bounds(losses, wins, n) == pytest.approx((-upper, -lower), abs=1e-6)


@given(st.integers(20, 300), st.integers(0, 100), st.integers(0, 100))
def test_more_losses_never_raise_the_bounds(n: int, wins: int, losses: int) -> None:
    assume(wins + losses < n)
    assert paired_bounds(wins, losses + 1, n)[0] <= paired_bounds(wins, losses, n)[0] + 1e-9


@pytest.mark.parametrize("discordant", [0.04, 0.10])
def test_a_loss_at_the_margin_passes_in_about_five_of_a_hundred(discordant: float) -> None:
    margin, n, trials = 0.02, 600, 2000
    rng = np.random.default_rng(0)
    shares = [(discordant - margin) / 2, (discordant + margin) / 2, 1 - discordant]
    counts = rng.multinomial(n, shares, size=trials)
    passed = np.mean([paired_bounds(int(w), int(ls), n)[0] > -margin for w, ls, _ in counts])
    assert passed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_the_number_of_items_that_would_decide() -> None:
    """The table of the planning formula: 5 % discordant items and a margin of 2 points need about 773."""
    assert items_to_decide(15, 15, 600, 0.02) == pytest.approx(773, rel=0.01)
    assert items_to_decide(0, 0, 50, 0.02) > 50
