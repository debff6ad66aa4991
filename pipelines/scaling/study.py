"""Two questions about many retrains: all due at once, and due at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy import stats

from pipelines.scaling.measured import Figures
from pipelines.scaling.queueing import mean_wait
from pipelines.scaling.retrain import retrain, retrains, variation
from pipelines.scaling.simulation import Arrival, Passage, simulate

WARM_UP = 0.1
"""Share of the retrains that find the line emptier than it is in the long run, and are not counted."""


@dataclass(frozen=True)
class Mean:
    """An average over independent repetitions, with the half width of its confidence interval."""

    value: float
    half_width: float


@dataclass(frozen=True)
class Night:
    """Retrains that are all due at once; averages over repetitions."""

    hours: float
    """Until the last one is registered."""
    busy_card_hours: float
    """That some retrain held."""
    held_card_hours: float
    """All cards, until the last one is registered: what is paid for where cards are rented together."""

    @property
    def utilisation(self) -> float:
        """Of the cards, 0 to 1."""
        return self.busy_card_hours / self.held_card_hours


def average(values: Sequence[float], confidence: float = 0.99) -> Mean:
    """Mean and Student's interval of independent values."""
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Mean(float(np.mean(values)), float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread)


def night(figures: Figures, models: int, cards: int, disks: int | None, repetitions: int) -> Night:
    """All models due at once; the same retrains whatever the number of cards."""
    held, ends = [], []
    for seed in range(repetitions):
        passages = simulate([Arrival(0.0, work) for work in islice(retrains(figures, seed), models)], cards, disks)
        held.append(sum(passage.held for passage in passages) / 3600)
        ends.append(max(passage.ended for passage in passages) / 3600)
    hours = float(np.mean(ends))
    return Night(hours, float(np.mean(held)), cards * hours)


def arrivals(figures: Figures, rate: float, count: int, seed: int) -> list[Arrival]:
    """Retrains that come as a Poisson process, `rate` a second."""
    times = np.random.default_rng([seed, 1]).exponential(1 / rate, count).cumsum()
    return [Arrival(float(at), work) for at, work in zip(times, retrains(figures, seed), strict=False)]


def waits(
    make: Callable[[int], list[Arrival]], cards: int, disks: int | None, repetitions: int, scheduled: float = 0.0
) -> Mean:
    """Mean seconds for which a retrain waits for its card, over independent repetitions.

    Args:
        make: The arrivals of a seed.
        cards: Of the line.
        disks: Of the line.
        repetitions: How many seeds.
        scheduled: Seconds that the scheduler takes, which are no waiting.
    """
    return average([_mean_wait(simulate(make(seed), cards, disks), scheduled) for seed in range(repetitions)])


def expected_wait(figures: Figures, rate: float, cards: int) -> float:
    """The same by Allen and Cunneen, for cards that share no disk: seconds."""
    return mean_wait(cards, rate, retrain(figures).card_s, variation(figures))


def _mean_wait(passages: Sequence[Passage], scheduled: float) -> float:
    counted = passages[int(WARM_UP * len(passages)) :]
    return float(np.mean([passage.got_card - passage.came - scheduled for passage in counted]))
