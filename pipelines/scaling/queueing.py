"""Closed forms of queues: what the simulation is checked against, and where it saturates.

Notation: `load` is the arrival rate times the mean service time, in cards (erlangs); a queue is stable below `cards`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.scaling.retrain import Retrain


def erlang_c(cards: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c.

    Erlang's formula (1917), by the recursion of Erlang B, which does not overflow: Cooper, Introduction to Queueing
    Theory, 2nd ed. (1981). From saturation on it is 1.
    """
    if load >= cards:
        return 1.0
    blocked = 1.0
    for number in range(1, cards + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / cards * (1 - blocked))


def mean_wait(
    cards: int, rate: float, service: float, service_variation: float, arrival_variation: float = 1.0
) -> float:
    """Mean seconds in the queue.

    Exact for M/M/c and, with one card, for M/G/1 (Pollaczek and Khinchine); else Allen and Cunneen's approximation
    (Allen, Probability, Statistics and Queueing Theory, 2nd ed., 1990).

    Args:
        cards: That serve.
        rate: Arrivals a second.
        service: Mean seconds of a service.
        service_variation: Squared coefficient of variation of services: 1 for exponential ones, 0 for equal ones.
        arrival_variation: The same of the time between arrivals; 1 for a Poisson process.

    Returns:
        Infinity where the cards do not keep up.
    """
    load = rate * service
    if load >= cards:
        return float("inf")
    markovian = erlang_c(cards, load) * service / (cards - load)
    return markovian * (arrival_variation + service_variation) / 2


@dataclass(frozen=True)
class Limit:
    """The rate that one part of the line can keep up with."""

    part: str
    per_hour: float


def limits(average: Retrain, cards: int, disks: int) -> list[Limit]:
    """Retrains an hour that each part can do, the tightest first.

    The bottleneck law: throughput is at most servers / demand, for every part (Denning and Buzen, The Operational
    Analysis of Queueing Network Models, ACM Computing Surveys 10(3), 1978).

    Args:
        average: Seconds that an average retrain needs of each part.
        cards: That train, export and evaluate, one retrain at a time each.
        disks: Each serves one retrain at a time.
    """
    found = [
        Limit("cards", 3600 * cards / average.card_s),
        Limit("disk", 3600 * disks / average.disk_s),
        Limit("scheduler", 3600 / average.scheduler_s),
        Limit("registry", 3600 / average.registry_s),
    ]
    return sorted(found, key=lambda limit: limit.per_hour)


def saturating_cards(average: Retrain, disks: int) -> int:
    """The number of cards from which on they are not the tightest bound.

    Near it a line does less than either bound, since cards wait for the disk: how much less is for the simulation.
    """
    others = min(limit.per_hour for limit in limits(average, 1, disks) if limit.part != "cards")
    return math.ceil(others * average.card_s / 3600)
