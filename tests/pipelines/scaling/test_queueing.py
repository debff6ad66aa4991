"""Closed forms against published values and against each other; the simulation against the closed forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from pipelines.scaling.measured import Figures
from pipelines.scaling.queueing import erlang_c, limits, mean_wait, saturating_cards
from pipelines.scaling.retrain import Retrain, Use, retrain, retrains, variation
from pipelines.scaling.simulation import Arrival
from pipelines.scaling.study import arrivals, expected_wait, night, waits
from pipelines.settings import ROOT

RETRAINS, REPETITIONS = 1500, 16


def summed(cards: int, load: float) -> float:
    """Erlang C as it is printed in books: the terms summed one by one."""
    terms = [load**n / math.factorial(n) for n in range(cards)]
    last = load**cards / math.factorial(cards) * cards / (cards - load)
    return last / (math.fsum(terms) + last)


@pytest.mark.parametrize(("cards", "load"), [(1, 0.3), (2, 1.5), (8, 7.9), (64, 50.0)])
def test_the_recursion_is_erlangs_formula(cards: int, load: float) -> None:
    assert erlang_c(cards, load) == pytest.approx(summed(cards, load), rel=1e-12)


def test_known_values() -> None:
    assert erlang_c(1, 0.8) == pytest.approx(0.8)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert mean_wait(1, 0.8, 1.0, 1.0) == pytest.approx(4.0)  # M/M/1
    assert mean_wait(1, 0.8, 1.0, 0.0) == pytest.approx(2.0)  # M/D/1
    assert mean_wait(4, 4.0, 1.0, 1.0) == math.inf


def _poisson(rate: float, services: Callable[[np.random.Generator], np.ndarray], seed: int) -> list[Arrival]:
    draw = np.random.default_rng(seed)
    times = draw.exponential(1 / rate, RETRAINS).cumsum()
    works = [Retrain((Use("card", float(seconds)),)) for seconds in services(draw)]
    return [Arrival(float(at), work) for at, work in zip(times, works, strict=True)]


def _exponential(draw: np.random.Generator) -> np.ndarray:
    return draw.exponential(1.0, RETRAINS)


def _lognormal(draw: np.random.Generator) -> np.ndarray:
    sigma = math.sqrt(math.log1p(0.25))
    return draw.lognormal(-(sigma**2) / 2, sigma, RETRAINS)


@pytest.mark.parametrize(
    ("cards", "load", "services", "spread"),
    [
        (4, 0.7, _exponential, 1.0),  # M/M/c, exact
        (1, 0.6, _lognormal, 0.25),  # M/G/1, exact
        (4, 0.7, _lognormal, 0.25),  # M/G/c, approximate
    ],
)
def test_the_simulation_waits_as_long_as_the_closed_form_says(
    cards: int, load: float, services: Callable[[np.random.Generator], np.ndarray], spread: float
) -> None:
    seen = waits(partial(_poisson, load * cards, services), cards, None, REPETITIONS)
    expected = mean_wait(cards, load * cards, 1.0, spread)
    assert abs(seen.value - expected) <= seen.half_width
    assert seen.half_width < 0.3 * expected  # narrow enough to tell one queue from another


def test_a_simulated_line_of_retrains_agrees_as_well() -> None:
    figures = Figures()
    rate = 0.7 * 4 / retrain(figures).card_s
    seen = waits(partial(arrivals, figures, rate, RETRAINS), 4, None, REPETITIONS, figures.scheduler_s)
    assert abs(seen.value - expected_wait(figures, rate, 4)) <= seen.half_width


def test_retrains_vary_as_the_figures_say() -> None:
    figures = Figures()
    stream = retrains(figures, seed=0)
    seconds = np.array([next(stream).card_s for _ in range(20_000)])
    assert seconds.mean() == pytest.approx(retrain(figures).card_s, rel=0.01)
    assert seconds.var() / seconds.mean() ** 2 == pytest.approx(variation(figures), rel=0.1)


def test_cards_are_the_limit_until_the_shared_disk_is() -> None:
    one = retrain(Figures())
    edge = saturating_cards(one, 1)
    assert 1 < edge < 64
    assert limits(one, edge - 1, 1)[0].part == "cards"
    assert limits(one, edge, 1)[0].part == "disk"
    assert limits(one, edge, 4)[0].part == "cards"


def test_past_the_edge_the_simulation_gains_nothing_from_more_cards() -> None:
    figures = Figures(spread=0.0)
    edge = saturating_cards(retrain(figures), 1)
    best = 200 * retrain(figures).disk_s / 3600  # the disk alone
    late = night(figures, 200, 3 * edge, 1, 1).hours
    assert best < late < 1.15 * best
    assert night(figures, 200, edge // 2, 1, 1).hours > 1.5 * late


def test_the_page_says_what_the_figures_give() -> None:
    page, one = (ROOT / "docs" / "scaling.md").read_text(), retrain(Figures())
    load, export, served = Figures().disk_s
    assert f"| a card, together | {one.card_s:,.0f} |" in page
    assert f"| {load:.0f}, {export:.0f}, {served:.0f} | disk, while the card waits |" in page
    edge = saturating_cards(one, 1)
    assert f"from {edge} on the shared disk is" in page
    for cards in (16, edge, 24):  # between the bounds, and so for the simulation
        done = 1500 / night(Figures(), 1500, cards, 1, 1).hours
        (said,) = re.findall(rf"\b{cards} (?:cards with one disk )?do (\d+\.\d)", page)
        assert done == pytest.approx(float(said), rel=0.01)
        assert done < limits(one, cards, 1)[0].per_hour


def test_a_slower_card_moves_the_edge_and_leaves_the_disk_alone() -> None:
    slow, fast = retrain(Figures(slower=3.0)), retrain(Figures())
    assert slow.disk_s == fast.disk_s
    assert saturating_cards(slow, 1) > 2 * saturating_cards(fast, 1)


@pytest.mark.parametrize("wrong", [{"tokens": 0.0}, {"slower": -1.0}, {"disk_gb_per_s": 0.0}])
def test_a_figure_that_no_machine_has_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Figures(**wrong)
