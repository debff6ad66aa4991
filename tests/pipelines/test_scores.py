"""Scores of answers: shares with Wilson's interval, mean grades with one by clusters."""

from __future__ import annotations

import pytest

from pipelines.evaluation import Answer, Score
from pipelines.grades import Grades, mean_bounds
from pipelines.scores import by_cluster, graded, score_of, scores
from pipelines.statistics import wilson


def answer(item: int, score: float | None = None, cluster: str | None = None, text: str = "7") -> Answer:
    return Answer(
        item=str(item), slice="s", expected="7", text=text, finish_reason="stop", seconds=0.1, score=score,
        cluster=cluster,
    )  # fmt: skip


def test_right_answers_have_wilsons_interval() -> None:
    low, high = wilson(3, 4)
    assert score_of([answer(n, text="8" if n == 0 else "7") for n in range(4)]) == Score(
        correct=3, n=4, low=low, high=high
    )


def test_scores_of_zero_and_one_are_right_answers_too() -> None:
    assert not graded([answer(0, 0.0), answer(1, 1.0), answer(2)])
    assert score_of([answer(0, 0.0), answer(1, 1.0), answer(2)]).low == wilson(2, 3)[0]


def test_grades_are_added_up() -> None:
    """Ten times 0.7 is exactly 7: a mean grade at a minimum is not below it."""
    score = score_of([answer(n, 0.7) for n in range(10)])
    assert (score.correct, score.share) == (7.0, 0.7)


def test_grades_have_an_interval_by_clusters() -> None:
    grades = [1.0, 0.5, 0.0, 0.75, 0.25, 0.5]
    shared = [answer(n, grade, cluster=str(n // 2)) for n, grade in enumerate(grades)]
    score = score_of(shared)
    assert (score.low, score.high) == mean_bounds([Grades(1.5, 2), Grades(0.75, 2), Grades(0.75, 2)], 0.975, least=0)
    alone = score_of([answer(n, grade) for n, grade in enumerate(grades * 20)])
    many = score_of([answer(n, grade, cluster=str(n // 12)) for n, grade in enumerate(grades * 20)])
    assert 0 <= score.low < alone.low < 0.5 < alone.high < score.high <= 1
    assert many.low < alone.low


@pytest.mark.parametrize("grade", [0.5, 0.99])
def test_the_same_grade_everywhere_is_not_certain(grade: float) -> None:
    score = score_of([answer(n, grade) for n in range(50)])
    assert score.low < grade - 0.02
    assert score.high > grade


def test_every_slice_has_its_score() -> None:
    other = answer(9).model_copy(update={"slice": "a"})
    assert list(scores([answer(0), answer(1), other])) == ["a", "s"]
    assert scores([answer(0), answer(1), other])["s"].n == 2


def test_questions_without_images_are_alone() -> None:
    answers = [answer(0, cluster="x"), answer(1), answer(2, cluster="x"), answer(3)]
    assert by_cluster((a, float(a.item)) for a in answers) == [[0, 2], [1], [3]]
