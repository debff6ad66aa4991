"""Known answers from the literature, properties, and simulations of the errors that the gate may make."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chi2, norm

from pipelines.statistics import (
    Pairs,
    clustered_bounds,
    clustered_variance,
    design_effect,
    items_to_decide,
    paired_bounds,
    planned_items,
    total,
    wilson,
)

TRIALS = 2000
NOISE = 3 * np.sqrt(0.05 * 0.95 / TRIALS)
"""Three standard errors of a share of 5 %."""

PARATHYROID = tuple(
    Pairs(wins, losses, n)
    for wins, losses, n in zip(
        (0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0),
        (3, 3, 3, 1, 3, 4, 3, 2, 2, 1, 3, 2, 3, 2, 2, 3, 3, 3, 2, 1, 2),
        strict=True,
    )
)
"""True negatives of PET against SPECT, glands of 21 patients: Obuchowski, Statistics in Medicine 17 (1998)."""

counts = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300)).filter(any)
"""Wins, losses and ties."""


@pytest.mark.parametrize(
    ("wins", "losses", "n", "level", "bounds"),
    [
        (9, 3, 32, 0.95, (-0.027, 0.390)),  # Tango, Statistics in Medicine 17 (1998)
        (0, 1, 44, 0.90, (-0.096, 0.037)),  # the same: two systems of disinfection, one discordant pair
        (16, 8, 86, 0.95, (-0.020, 0.207)),  # Agresti, Min, Statistics in Medicine 24 (2005)
        (1, 7, 21, 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014)
        (3, 1, 14, 0.95, (-0.1670, 0.4327)),  # Tang, Ling, Ling, Tian, Statistics in Medicine 29 (2010)
        (25, 2, 102, 0.95, (0.139, 0.321)),  # Chang and others (2024)
    ],
)
def test_tango_known_answers(wins: int, losses: int, n: int, level: float, bounds: tuple[float, float]) -> None:
    digits = 4 if n == 14 else 3
    found = paired_bounds(wins, losses, n, confidence=(1 + level) / 2)
    assert tuple(round(bound, digits) for bound in found) == bounds


@pytest.mark.parametrize(("losses", "points"), [(0, 0.45), (1, 0.74), (3, 1.24), (8, 2.35)])
def test_tango_keeps_its_width_with_few_discordant_items(losses: int, points: float) -> None:
    lower, _ = paired_bounds(0, losses, 600)
    assert round(-100 * lower, 2) == points


@given(counts)
def test_a_bound_at_zero_is_mcnemars_test(table: tuple[int, int, int]) -> None:
    """Tango's score at a difference of 0 is McNemar's statistic, as his paper says."""
    wins, losses, ties = table
    assume(wins != losses)
    p_value = norm.sf(abs(wins - losses) / np.sqrt(wins + losses))
    assume(1e-9 < p_value < 0.49)
    bounds = paired_bounds(wins, losses, wins + losses + ties, confidence=1 - p_value)
    assert min(map(abs, bounds)) == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(counts)
def test_bounds_enclose_the_difference_and_mirror(table: tuple[int, int, int]) -> None:
    wins, losses, n = *table[:2], sum(table)
    lower, upper = paired_bounds(wins, losses, n)
    assert -1 <= lower <= (wins - losses) / n + 1e-9
    assert (wins - losses) / n - 1e-9 <= upper <= 1
    assert paired_bounds(losses, wins, n) == pytest.approx((-upper, -lower), abs=1e-6)


@given(st.integers(20, 300), st.integers(0, 100), st.integers(0, 100))
def test_more_losses_never_raise_the_bounds(n: int, wins: int, losses: int) -> None:
    assume(wins + losses < n)
    assert paired_bounds(wins, losses + 1, n)[0] <= paired_bounds(wins, losses, n)[0] + 1e-9


@given(counts, st.integers(2, 8))
def test_more_items_of_the_same_kind_narrow_the_bounds(table: tuple[int, int, int], times: int) -> None:
    wins, losses, n = *table[:2], sum(table)
    few, many = paired_bounds(wins, losses, n), paired_bounds(times * wins, times * losses, times * n)
    assert few[0] - 1e-9 <= many[0] <= many[1] <= few[1] + 1e-9


@pytest.mark.parametrize("n", [100, 600])
@pytest.mark.parametrize("margin", [0.02, 0.05])
@pytest.mark.parametrize("others", [0.0, 0.02, 0.08])
def test_a_loss_at_the_margin_passes_in_at_most_five_of_a_hundred(n: int, margin: float, others: float) -> None:
    """`others`: discordant items beside those that make up the loss."""
    shares = [others / 2, others / 2 + margin, 1 - margin - others]
    assert passes(shares, n, margin) <= 0.05 + NOISE


def test_steps_of_counts_never_cost_more_than_seven_of_a_hundred() -> None:
    """Exactly, where a loss at the margin is all that differs: the worst number of items is 134."""
    for n in range(50, 400):
        lost = next(losses for losses in range(n) if paired_bounds(0, losses, n)[0] <= -0.02)
        assert binom.cdf(lost - 1, n, 0.02) < 0.07


def passes(shares: list[float], n: int, margin: float) -> float:
    """How often a gate with this margin passes."""
    lower = cache(lambda wins, losses: paired_bounds(wins, losses, n)[0])
    drawn = np.random.default_rng(0).multinomial(n, shares, size=TRIALS)
    return float(np.mean([lower(int(wins), int(losses)) > -margin for wins, losses, _ in drawn]))


@pytest.mark.parametrize(
    ("wins", "losses", "n", "margin"),
    [(5, 5, 200, 0.02), (1, 1, 100, 0.01), (5, 5, 100, 0.03), (2, 3, 100, 0.03), (5, 2, 100, 0.0)],
)
def test_the_items_that_it_names_decide_in_four_of_five_cases(wins: int, losses: int, n: int, margin: float) -> None:
    need = items_to_decide(wins, losses, n, -margin)
    assert need is not None
    assert need > n + 1
    shares = [wins / n, losses / n, 1 - (wins + losses) / n]
    assert passes(shares, need, margin) == pytest.approx(0.8, abs=0.04)


def test_without_a_discordant_item_it_names_where_the_bound_crosses_the_margin() -> None:
    need = items_to_decide(0, 0, 50, -0.02)
    assert need is not None
    assert paired_bounds(0, 0, need)[0] > -0.02 >= paired_bounds(0, 0, need - 1)[0]


def test_a_difference_that_is_the_threshold_is_never_decided() -> None:
    assert items_to_decide(0, 0, 50, 0.0) is None
    assert items_to_decide(0, 2, 100, -0.02) is None


@given(counts, st.floats(0.001, 0.3), st.floats(1, 10))
def test_clusters_and_more_power_need_more_items(table: tuple[int, int, int], margin: float, effect: float) -> None:
    wins, losses, n = *table[:2], sum(table)
    need = items_to_decide(wins, losses, n, -margin)
    assume(need is not None)
    assert need is not None
    assert need > n
    assert (items_to_decide(wins, losses, n, -margin, effect=effect) or 0) >= need
    shares = wins / n, losses / n, -margin
    assert planned_items(*shares, power=0.9) >= planned_items(*shares) >= planned_items(*shares, power=0.5)


def test_a_design_effect_multiplies_the_items() -> None:
    assert items_to_decide(5, 5, 200, -0.02) == 837
    assert items_to_decide(5, 5, 200, -0.02, effect=2) == 1674


def test_obuchowski_known_answer() -> None:
    """The statistic of the paper's example, as the R package clust.bin.pair prints it too."""
    items = total(PARATHYROID)
    assert (items.wins, items.losses, items.n) == (1, 7, 51)
    statistic = (items.wins - items.losses) ** 2 / clustered_variance(PARATHYROID, 0)
    assert round(statistic, 4) == 2.8571
    assert round(float(chi2.sf(statistic, 1)), 5) == 0.09097


def test_clusters_widen_the_bounds_of_the_example() -> None:
    items = total(PARATHYROID)
    lower, upper = clustered_bounds(PARATHYROID, 0.975)
    alone = paired_bounds(items.wins, items.losses, items.n, 0.975)
    assert alone[1] < 0 < upper  # McNemar's test sees a difference that the patients do not bear out
    assert lower < alone[0]


@given(st.lists(st.sampled_from([(1, 0), (0, 1), (0, 0)]), min_size=1, max_size=60))
def test_clusters_of_one_item_are_exactly_independent_items(outcomes: list[tuple[int, int]]) -> None:
    clusters = [Pairs(wins, losses, 1) for wins, losses in outcomes]
    items = total(clusters)
    assert clustered_bounds(clusters) == paired_bounds(items.wins, items.losses, items.n)


@st.composite
def some_clusters(draw: st.DrawFn) -> list[Pairs]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=30))
    found = []
    for n in sizes:
        wins = draw(st.integers(0, n))
        found.append(Pairs(wins, draw(st.integers(0, n - wins)), n))
    return found


@given(some_clusters())
def test_clusters_never_narrow_the_bounds(clusters: list[Pairs]) -> None:
    items = total(clusters)
    assert design_effect(clusters) >= 1
    lower, upper = clustered_bounds(clusters)
    alone = paired_bounds(items.wins, items.losses, items.n)
    assert lower <= alone[0] + 1e-9
    assert upper >= alone[1] - 1e-9


@given(some_clusters(), st.integers(2, 5))
def test_a_question_asked_again_says_nothing_new(clusters: list[Pairs], times: int) -> None:
    """Many clusters whose items are copies of one: as wide as one item for each, or wider."""
    single = [Pairs(min(c.wins, 1), 0 if c.wins else min(c.losses, 1), 1) for c in clusters]
    copies = [Pairs(times * c.wins, times * c.losses, times) for c in single]
    one, many = clustered_bounds(single), clustered_bounds(copies)
    assert many[0] <= one[0] + 1e-6
    assert many[1] >= one[1] - 1e-6


def test_a_cluster_without_discordant_items_counts_as_one_item() -> None:
    clusters = [Pairs(0, 0, 4)] * 100
    assert design_effect(clusters) == pytest.approx(4)
    assert clustered_bounds(clusters) == pytest.approx(paired_bounds(0, 0, 100), abs=1e-9)


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("images", "questions"), [(60, 4), (200, 4), (200, 2)])
def test_a_loss_at_the_margin_does_not_pass_because_images_are_shared(
    images: int, questions: int, alike: float
) -> None:
    """`alike`: the share of images whose questions all fare the same."""
    margin = 0.04
    bounds = [clustered_bounds(clusters)[0] for clusters in drawn(images, questions, alike, margin)]
    assert np.mean(np.array(bounds) > -margin) <= 0.05 + NOISE


def test_independent_bounds_would_let_it_pass() -> None:
    """What clusters are for: counted as independent, the same loss passes far too often."""
    margin = 0.04
    bounds = [paired_bounds(items.wins, items.losses, items.n)[0] for items in map(total, drawn(200, 4, 1.0, margin))]
    assert np.mean(np.array(bounds) > -margin) > 0.1


def drawn(images: int, questions: int, alike: float, loss: float) -> Iterator[list[Pairs]]:
    """Trials of clusters with 4 % wins and 4 % losses beside the loss that is asked for."""
    rng = np.random.default_rng(1)
    shares = np.array([0.04, 0.04 + loss, 0.92 - loss])
    for _ in range(TRIALS):
        outcomes = rng.choice(3, p=shares, size=(images, questions))
        same = rng.random(images) < alike
        outcomes[same] = outcomes[same, :1]
        wins, losses = (outcomes == 0).sum(axis=1), (outcomes == 1).sum(axis=1)
        yield [Pairs(int(w), int(ls), questions) for w, ls in zip(wins, losses, strict=True)]
