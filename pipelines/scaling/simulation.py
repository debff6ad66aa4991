"""A line of retrains on several cards, simulated event by event.

First come, first served everywhere: at the one scheduler, at the cards, at the disks while a card is held, at the one
registry after it is let go.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import simpy

from pipelines.scaling.retrain import Retrain

Events = Generator[simpy.Event, None, None]


@dataclass(frozen=True)
class Arrival:
    """A retrain that is due at a time, in seconds."""

    at: float
    work: Retrain


@dataclass
class Passage:
    """When a retrain came, got its card, let it go, and was registered; seconds."""

    came: float
    got_card: float = 0.0
    left_card: float = 0.0
    ended: float = 0.0

    @property
    def held(self) -> float:
        """For how long it had the card."""
        return self.left_card - self.got_card


class Line:
    """Cards, disks, a scheduler and a registry."""

    def __init__(self, cards: int, disks: int | None) -> None:
        self.clock = simpy.Environment()
        self.cards = simpy.Resource(self.clock, cards)
        self.disks = simpy.Resource(self.clock, disks) if disks is not None else None
        self.scheduler = simpy.Resource(self.clock, 1)
        self.registry = simpy.Resource(self.clock, 1)

    def pass_through(self, arrival: Arrival, passage: Passage) -> Events:
        """All of one retrain."""
        yield self.clock.timeout(arrival.at)
        yield from self._at(self.scheduler, arrival.work.scheduler_s)
        with self.cards.request() as card:
            yield card
            passage.got_card = self.clock.now
            for use in arrival.work.uses:
                yield from self._at(self.disks if use.place == "disk" else None, use.seconds)
            passage.left_card = self.clock.now
        yield from self._at(self.registry, arrival.work.registry_s)
        passage.ended = self.clock.now

    def _at(self, place: simpy.Resource | None, seconds: float) -> Events:
        if seconds == 0:
            return
        if place is None:
            yield self.clock.timeout(seconds)
            return
        with place.request() as turn:
            yield turn
            yield self.clock.timeout(seconds)


def simulate(arrivals: Sequence[Arrival], cards: int, disks: int | None = None) -> list[Passage]:
    """Let retrains pass through a line, until the last one is registered.

    Args:
        arrivals: In any order; those of one moment are served as listed.
        cards: That each serve one retrain at a time.
        disks: That all cards share; None: each card has its own.

    Returns:
        What happened to each, in the order of the arrivals.
    """
    line = Line(cards, disks)
    passages = [Passage(arrival.at) for arrival in arrivals]
    for arrival, passage in zip(arrivals, passages, strict=True):
        line.clock.process(line.pass_through(arrival, passage))
    line.clock.run()
    return passages
