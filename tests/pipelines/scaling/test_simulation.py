"""What holds for any retrains on any number of cards."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scaling.retrain import Retrain, Use
from pipelines.scaling.simulation import Arrival, simulate

SECONDS = st.floats(0.001, 1000, allow_nan=False)
USES = st.lists(st.builds(Use, st.sampled_from(["card", "disk"]), SECONDS), min_size=1, max_size=4).map(tuple)
ARRIVALS = st.lists(
    st.builds(Arrival, st.floats(0, 1000), st.builds(Retrain, USES, st.just(0.0), st.floats(0, 10))),
    min_size=1,
    max_size=25,
)
CARDS = st.integers(1, 8)


@given(ARRIVALS, CARDS)
@settings(max_examples=60, deadline=None)
def test_work_is_conserved(arrivals: list[Arrival], cards: int) -> None:
    passages = simulate(arrivals, cards)
    assert math.fsum(one.held for one in passages) == pytest.approx(sum(one.work.card_s for one in arrivals))


@given(ARRIVALS, CARDS, st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_nothing_is_early_and_no_place_is_taken_twice(arrivals: list[Arrival], cards: int, disks: int) -> None:
    passages = simulate(arrivals, cards, disks)
    for arrival, one in zip(arrivals, passages, strict=True):
        assert arrival.at <= one.got_card <= one.left_card <= one.ended
        assert one.held >= arrival.work.card_s - 1e-6
        assert one.ended - one.left_card >= arrival.work.registry_s - 1e-6
    for moment in (one.got_card for one in passages):
        assert sum(other.got_card <= moment < other.left_card for other in passages) <= cards


@given(ARRIVALS, CARDS)
@settings(max_examples=60, deadline=None)
def test_no_card_is_idle_while_a_retrain_waits(arrivals: list[Arrival], cards: int) -> None:
    passages = simulate(arrivals, cards)
    for one in passages:
        if one.got_card > one.came + 1e-6:
            before = one.got_card - 1e-7
            assert sum(other.got_card <= before < other.left_card for other in passages) == cards


@given(ARRIVALS, CARDS)
@settings(max_examples=60, deadline=None)
def test_one_more_card_makes_no_retrain_later(arrivals: list[Arrival], cards: int) -> None:
    # Holds where disks are not shared; with a shared one a retrain may be overtaken on its way to it.
    few, more = simulate(arrivals, cards), simulate(arrivals, cards + 1)
    assert all(b.got_card <= a.got_card + 1e-6 for a, b in zip(few, more, strict=True))
    assert all(b.left_card <= a.left_card + 1e-6 for a, b in zip(few, more, strict=True))


@given(ARRIVALS, CARDS)
@settings(max_examples=60, deadline=None)
def test_a_shared_disk_that_is_never_asked_for_at_once_is_as_good_as_ones_own(
    arrivals: list[Arrival], cards: int
) -> None:
    own, shared = simulate(arrivals, cards), simulate(arrivals, cards, disks=cards)
    assert [one.left_card for one in own] == pytest.approx([one.left_card for one in shared])


def test_a_card_is_held_while_the_disk_is_waited_for() -> None:
    both = [Arrival(0.0, Retrain((Use("disk", 10.0), Use("card", 1.0)))) for _ in range(2)]
    assert [one.left_card for one in simulate(both, cards=2, disks=1)] == [11.0, 21.0]
    assert [one.left_card for one in simulate(both, cards=2)] == [11.0, 11.0]


def test_one_scheduler_and_one_registry_serve_one_at_a_time() -> None:
    both = [Arrival(0.0, Retrain((Use("card", 1.0),), scheduler_s=5.0, registry_s=7.0)) for _ in range(2)]
    passages = simulate(both, cards=2)
    assert [one.got_card for one in passages] == [5.0, 10.0]
    assert [one.ended for one in passages] == [13.0, 20.0]
