"""Sets, categories of a tree, and what both are counted by."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scenarios.scorers.hierarchy import Hierarchy
from pipelines.scenarios.scorers.overlap import f1
from pipelines.scenarios.scorers.sets import Set

SET, TREE = Set(name="set"), Hierarchy(name="hierarchy")
WORDS = st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1)


def test_hierarchical_precision_and_recall_of_the_published_example() -> None:
    # Kiritchenko, Matwin and Famili: G with its ancestors {B, C, E, G}, predicted F with {C, F}: hP 1/2, hR 1/4.
    assert f1("CF", "BCEG") == pytest.approx(2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))


@pytest.mark.parametrize(
    ("answer", "score", "top"),
    [
        ("Electronics > Audio > Headphones", 1, True),
        ('["electronics", "audio", "headphones"]', 1, True),
        ("electronics>AUDIO > Headphones.", 1, True),
        ("Electronics > Audio > Speakers", 2 / 3, True),
        ("Electronics > Audio", 4 / 5, True),
        ("Electronics", 1 / 2, True),
        ("Home > Audio > Headphones", 0, False),  # the same names below another parent are other categories
        ("Headphones", 0, False),
        ("", 0, False),
    ],
)
def test_a_category_that_is_near_is_worth_something(answer: str, score: float, top: bool) -> None:
    scored = TREE.score(answer, "Electronics > Audio > Headphones")
    assert (scored.score, scored.marks) == (pytest.approx(score), {"top": top})


def test_another_separator() -> None:
    assert Hierarchy(name="hierarchy", separator="/").score("a/c", "a/b").score == pytest.approx(1 / 2)


def test_a_category_must_be_named() -> None:
    assert TREE.objection(" > ") == "names no category"


@pytest.mark.parametrize(
    ("answer", "score", "complete"),
    [
        ("red, green", 1, True),
        ("- Green\n- red\n", 1, True),
        ('```json\n["red", "green", "red"]\n```', 1, True),
        ("red", 2 / 3, False),
        ("red; green; blue", 4 / 5, True),
        ("blue", 0, False),
    ],
)
def test_sets(answer: str, score: float, complete: bool) -> None:
    scored = SET.score(answer, '["red", "green"]')
    assert (scored.score, scored.marks) == (pytest.approx(score), {"complete": complete})


def test_nothing_is_the_right_answer_where_nothing_is_expected() -> None:
    assert SET.score("", "[]").score == 1
    assert SET.score("red", "[]").score == 0


@settings(deadline=None)
@given(WORDS, WORDS, st.randoms(use_true_random=False))
def test_order_does_not_count_and_either_may_be_the_expected_one(
    ours: list[str], theirs: list[str], dice: object
) -> None:
    shuffled = list(ours)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    score = SET.score(json.dumps(ours), json.dumps(theirs)).score
    assert SET.score(", ".join(shuffled), json.dumps(theirs)).score == score
    assert SET.score(json.dumps(theirs), json.dumps(ours)).score == score


@settings(deadline=None)
@given(WORDS, st.integers(0, 10))
def test_a_longer_right_part_of_a_path_is_worth_more(path: list[str], depth: int) -> None:
    scores = [TREE.score(json.dumps(path[:n]), json.dumps(path)).score for n in range(len(path) + 1)]
    assert scores == sorted(scores)
    assert scores[-1] == 1
