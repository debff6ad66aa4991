"""The synthetic images are a function of their seed, and their answers are balanced."""

from __future__ import annotations

from collections import Counter

from training.builtin.drawings import SIZE, answers, draw_many

COUNTS = {"printed": 20, "colours": 12, "shapes": 8}


def test_a_seed_means_the_same_pictures() -> None:
    first, again = (draw_many(COUNTS, seed=3) for _ in range(2))
    assert [d.image.tobytes() for d in first] == [d.image.tobytes() for d in again]


def test_pictures_of_two_seeds_and_of_one_are_all_different() -> None:
    drawings = [*draw_many(COUNTS, seed=3), *draw_many(COUNTS, seed=4)]
    assert len({d.image.tobytes() for d in drawings}) == 2 * sum(COUNTS.values())


def test_answers_come_equally_often_and_are_known() -> None:
    drawings = draw_many(COUNTS, seed=0)
    assert Counter(d.slice for d in drawings) == COUNTS
    assert set(Counter(d.answer for d in drawings).values()) == {2}
    assert {d.answer for d in drawings} == set(answers())


def test_every_picture_is_an_rgb_square() -> None:
    assert {(d.image.mode, d.image.size) for d in draw_many(COUNTS, seed=0)} == {("RGB", (SIZE, SIZE))}
