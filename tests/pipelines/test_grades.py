"""Bounds for grades: known answers, exact ones, properties, and simulations of the errors that the gate may make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, bootstrap, norm

from pipelines.grades import Grades, bca_bounds, items_to_decide, mean, mean_bounds, unseen_bounds

TRIALS = 2000
NOISE = 3 * math.sqrt(0.05 * 0.95 / TRIALS)
"""Three standard errors of a share of 5 %."""

DRAWS = 499
"""Of a bound in a simulation; another seed each time, so that trials do not share their luck."""

PATCH_CHANGE = np.array([-1200, 2601, -2705, 1982, -1290, 351, -638, -2719], dtype=float)
PATCH_SIZE = np.array([8406, 2342, 8187, 8459, 4795, 3516, 4796, 10238], dtype=float)
"""Hormone of eight patients with a new patch against an old one, and with that against none; the ratio of the sums is
in question. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), table 10.1."""


def test_bca_agrees_with_the_example_of_r() -> None:
    """What R's package boot prints of this mean, with a million resamples, as scipy's own tests quote it."""
    values = np.array([10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213])
    found = bca_bounds(values, np.ones(16), 0.975, resamples=200_000)
    assert found == pytest.approx((32.31, 91.43), rel=0.005)


def test_bca_agrees_with_its_formula_over_every_resample() -> None:
    """Formulas 14.9 to 14.15 of the book, on all 6,435 resamples of the patch data, each with its probability."""
    assert PATCH_CHANGE.sum() / PATCH_SIZE.sum() == pytest.approx(-0.0713, abs=5e-5)
    found = bca_bounds(PATCH_CHANGE, PATCH_SIZE, 0.95, resamples=200_000)
    assert found == pytest.approx(exact_bca(PATCH_CHANGE, PATCH_SIZE, 0.95), abs=0.003)


def exact_bca(changes: np.ndarray, sizes: np.ndarray, confidence: float) -> tuple[float, float]:
    n, ratio = len(changes), changes.sum() / sizes.sum()
    drawn = [np.bincount(picked, minlength=n) for picked in combinations_with_replacement(range(n), n)]
    values = np.array([(counts @ changes) / (counts @ sizes) for counts in drawn])
    chances = np.array([math.factorial(n) / np.prod([math.factorial(c) for c in counts]) for counts in drawn]) / n**n
    left_out = np.array([np.delete(changes, i).sum() / np.delete(sizes, i).sum() for i in range(n)])
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    bias = norm.ppf(chances[values < ratio].sum() + chances[np.isclose(values, ratio)].sum() / 2)
    order = np.argsort(values)

    def quantile(z: float) -> float:
        level = norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        return float(values[order][np.searchsorted(chances[order].cumsum(), level)])

    return quantile(norm.ppf(1 - confidence)), quantile(norm.ppf(confidence))


def test_with_many_items_that_differ_it_is_scipys_bootstrap() -> None:
    changes = np.random.default_rng(3).normal(0.02, 0.2, 4000).clip(-1, 1)
    interval = bootstrap((changes,), np.mean, confidence_level=0.9, rng=np.random.default_rng(4)).confidence_interval
    found = mean_bounds([Grades(float(change), 1) for change in changes])
    assert found == pytest.approx((interval.low, interval.high), abs=5e-4)


@pytest.mark.parametrize(("lost", "n"), [(0, 50), (1, 50), (5, 100), (0, 600)])
def test_what_is_unseen_counts_as_for_clopper_and_pearson(lost: int, n: int) -> None:
    """On answers that are right or wrong, their exact bound of the share that is lost."""
    totals = np.array([-1.0] * lost + [0.0] * (n - lost))
    low, high = unseen_bounds(totals, np.ones(n), 0.95, (-1, 0), resamples=100_000)
    assert -low == pytest.approx(beta.ppf(0.95, lost + 1, n - lost), rel=0.02)
    assert -high == pytest.approx(beta.ppf(0.05, lost, n - lost + 1) if lost else 0, rel=0.02)


@pytest.mark.parametrize("n", [1, 2, 50, 600])
@pytest.mark.parametrize("grade", [0.0, 0.25, -0.5])
def test_bounds_keep_a_width_when_all_items_change_alike(n: int, grade: float) -> None:
    """The bootstrap alone would say that nothing else can be."""
    low, high = mean_bounds([Grades(grade, 1)] * n)
    exact = 1 - 0.05 ** (1 / n)
    assert low == pytest.approx(grade - (grade + 1) * exact, abs=0.03 * exact)
    assert high == pytest.approx(grade + (1 - grade) * exact, abs=0.03 * exact)


def test_a_cluster_without_changes_counts_as_one_item() -> None:
    four, one = mean_bounds([Grades(0.0, 4)] * 100), mean_bounds([Grades(0.0, 1)] * 100)
    assert four == pytest.approx(one)


def test_the_same_answers_have_the_same_bounds_every_time() -> None:
    clusters = [Grades(0.3, 1), Grades(-0.2, 2), Grades(0.0, 1)] * 20
    assert mean_bounds(clusters) == mean_bounds(clusters)


def test_many_clusters_are_drawn_in_batches() -> None:
    """Memory does not grow with resamples times clusters; the bounds are those of the normal approximation."""
    changes = np.random.default_rng(0).choice([-0.5, 0.0, 0.5], size=20_000)
    found = mean_bounds([Grades(float(change), 1) for change in changes], resamples=999)
    normal = norm.ppf([0.05, 0.95], changes.mean(), changes.std() / math.sqrt(len(changes)))
    assert found == pytest.approx(normal, abs=5e-4)


some_clusters = st.lists(
    st.tuples(st.floats(-1, 1, allow_subnormal=False), st.integers(1, 5)).map(lambda c: Grades(c[0] * c[1], c[1])),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(some_clusters)
def test_bounds_enclose_the_mean_within_the_range(clusters: list[Grades]) -> None:
    low, high = mean_bounds(clusters, resamples=999)
    assert -1 <= low <= mean(clusters) + 0.02
    assert mean(clusters) - 0.02 <= high <= 1
    assert low < high


@settings(max_examples=40, deadline=None)
@given(some_clusters, st.floats(0.01, 0.3))
def test_items_that_would_decide_are_more_than_there_are(clusters: list[Grades], margin: float) -> None:
    need = items_to_decide(clusters, -margin)
    assume(need is not None)
    assert need is not None
    assert need > sum(cluster.n for cluster in clusters)
    assert (items_to_decide(clusters, -margin, power=0.95) or 0) >= need


def test_a_mean_that_is_the_threshold_is_never_decided() -> None:
    assert items_to_decide([Grades(-0.25, 1)] * 30, -0.25) is None


# What a candidate loses image by image: five points on average, never as a normal distribution would.
def few_lose_all(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """One item of twenty loses everything, the others nothing."""
    return np.where(rng.random(images) < 0.05, -1.0, 0.0), np.ones(images)


def thirds(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """A field of three now and then, either way, and one item of twenty loses everything."""
    small = rng.choice([-1 / 3, 0.0, 1 / 3], p=[0.2, 0.6, 0.2], size=images)
    return np.where(rng.random(images) < 0.05, -1.0, small), np.ones(images)


def noise(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Every grade moves a little, down by five points on average."""
    return rng.uniform(-0.3, 0.2, size=images), np.ones(images)


def together(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """One to six questions about each image, which lose alike: of twenty images one loses everything."""
    sizes = rng.integers(1, 7, size=images).astype(float)
    return few_lose_all(rng, images)[0] * sizes, sizes


Truth = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def lower_bounds(truth: Truth, images: int) -> Iterator[float]:
    for trial in range(TRIALS):
        totals, sizes = truth(np.random.default_rng(trial), images)
        clusters = [Grades(float(total), int(size)) for total, size in zip(totals, sizes, strict=True)]
        yield mean_bounds(clusters, resamples=DRAWS, seed=trial)[0]


@pytest.mark.parametrize(
    ("truth", "images"),
    [(few_lose_all, 40), (thirds, 40), (noise, 40), (together, 40), (thirds, 100), (together, 100)],
)
def test_a_loss_at_the_margin_passes_in_at_most_five_of_a_hundred(truth: Truth, images: int) -> None:
    assert np.mean(np.array(list(lower_bounds(truth, images))) > -0.05) <= 0.05 + NOISE


def test_the_bootstrap_alone_would_let_it_pass() -> None:
    """What the unseen cluster is for: where few items differ, BCa has seen too little."""
    passed = 0
    for trial in range(TRIALS):
        totals, sizes = together(np.random.default_rng(trial), 40)
        passed += not totals.any() or bca_bounds(totals, sizes, 0.95, DRAWS, trial)[0] > -0.05
    assert passed / TRIALS > 0.09


@pytest.mark.parametrize(
    "population",
    [
        [Grades(float(change), 1) for change in np.linspace(-0.3, 0.2, 20)],
        [Grades(change, 1) for change in [-1.0] + [-1 / 3, 1 / 3] * 4 + [0.0] * 11],
        [Grades(change * n, n) for n in (1, 2, 4, 5) for change in [-0.8, 0.3, 0.2, 0.1, 0.0]],
        [Grades(0.0, 1)] * 20,
    ],
    ids=["even", "thirds", "clusters", "unchanged"],
)
@pytest.mark.parametrize("beyond", [-0.1, 0.08])
def test_the_items_that_it_names_decide_in_four_of_five_cases(population: list[Grades], beyond: float) -> None:
    """Drawn from a population of which the items seen so far are a true picture; for a candidate, and against one."""
    threshold = mean(population) + beyond
    need = items_to_decide(population, threshold)
    assert need is not None
    count = round(need * len(population) / sum(cluster.n for cluster in population))
    decided = 0
    for trial in range(500):
        drawn = [population[i] for i in np.random.default_rng(trial).integers(len(population), size=count)]
        low, high = mean_bounds(drawn, resamples=DRAWS, seed=trial)
        decided += low > threshold if beyond < 0 else high < threshold
    assert 0.74 < decided / 500 < 0.92
