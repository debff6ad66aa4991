"""One retrain as a list of what it occupies, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.scaling.measured import Figures

Place = Literal["card", "disk"]


@dataclass(frozen=True)
class Use:
    """Seconds at one place, with the card held; `card`: nothing else is needed."""

    place: Place
    seconds: float


@dataclass(frozen=True)
class Retrain:
    """What one retrain needs; seconds without any waiting."""

    uses: tuple[Use, ...]
    scheduler_s: float = 0.0
    registry_s: float = 0.0

    @property
    def card_s(self) -> float:
        """For which a card is held: its own work, and the disk's for it."""
        return math.fsum(use.seconds for use in self.uses)

    @property
    def disk_s(self) -> float:
        """Of the disk."""
        return math.fsum(use.seconds for use in self.uses if use.place == "disk")


def retrain(figures: Figures, size: float = 1.0) -> Retrain:
    """A retrain by the figures.

    Args:
        figures: What was measured.
        size: Of its training data, where the average is 1.
    """
    load, export, served = figures.disk_s
    uses = (
        Use("disk", load),
        Use("card", size * figures.finetune_s),
        Use("disk", export),
        Use("disk", served),
        Use("card", figures.evaluate_s),
    )
    return Retrain(uses, figures.scheduler_s, figures.registry_s)


def retrains(figures: Figures, seed: int) -> Iterator[Retrain]:
    """Retrains without end, of sizes that are lognormal with mean 1 and the figures' spread."""
    draw, sigma = np.random.default_rng(seed), math.sqrt(math.log1p(figures.spread**2))
    while True:
        yield retrain(figures, float(draw.lognormal(-(sigma**2) / 2, sigma)))


def variation(figures: Figures) -> float:
    """Squared coefficient of variation of the seconds on a card."""
    return (figures.spread * figures.finetune_s / retrain(figures).card_s) ** 2
