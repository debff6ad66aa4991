"""Right answers are compared as counts, grades by their means; either way by clusters."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate, Requirement
from pipelines.grades import Grades, mean_bounds
from pipelines.judgement.paired import compared
from pipelines.judgement.quality import quality
from pipelines.judgement.side import Answers
from pipelines.statistics import paired_bounds
from tests.pipelines.judgement.sides import answers, side


def grades(values: list[float], images: int = 0) -> Answers:
    """Answers of the slice `new` with these grades."""
    plain = answers("1" * len(values), "", images=images).values()
    return {
        answer.item: answer.model_copy(update={"score": value}) for answer, value in zip(plain, values, strict=True)
    }


def drawn(seed: int, n: int, mean: float) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(mean, 0.1, n).clip(0, 1)]


def only(candidate: Answers, reference: Answers, **rule: object) -> Finding:
    requirement = Requirement.model_validate({"slice": "new", **rule})
    [finding] = quality(Gate(requirements=(requirement,)), side(candidate), side(reference, "base"), None)
    return finding


def test_grades_are_compared_by_their_means() -> None:
    ours, theirs = [0.5, 1.0, 0.25, 0.75] * 20, [0.5, 0.5, 0.5, 0.5] * 20
    found = compared(grades(ours), grades(theirs), -0.02, 0.95)
    assert (found.score, found.n, found.wins, found.losses) == ("mean grade 62.5% of 80 items", 80, 40, 20)
    assert found.difference == 0.125
    assert (found.lower, found.upper) == mean_bounds([Grades(a - b, 1) for a, b in zip(ours, theirs, strict=True)])


def test_one_grade_between_is_enough_to_compare_grades() -> None:
    right = [1.0] * 30 + [0.0] * 10
    counted = compared(grades(right), grades(right), -0.02, 0.95)
    assert (counted.lower, counted.upper) == paired_bounds(0, 0, 40)
    for pair in ((right, [*right[:-1], 0.5]), ([*right[:-1], 0.5], right)):
        assert compared(*map(grades, pair), -0.02, 0.95).score.startswith("mean grade")


def test_scores_of_zero_and_one_are_counted_as_right_answers() -> None:
    finding = only(grades([1.0] * 390 + [0.0] * 10), answers("1" * 390 + "0" * 10, ""), margin=0.05)
    assert finding.outcome == "pass"
    assert finding.reason.startswith("390 of 400 right (97.5%), +0.0 points against base (wins 0, losses 0; 95% bounds")


def test_an_equal_candidate_passes() -> None:
    same = grades(drawn(1, 300, 0.8))
    finding = only(same, same, margin=0.02)
    assert finding.outcome == "pass"
    assert "surely no loss beyond 2 points" in finding.reason


def test_grades_that_fall_everywhere_a_little_fail() -> None:
    theirs = drawn(1, 300, 0.8)
    finding = only(grades([max(0.0, grade - 0.05) for grade in theirs]), grades(theirs), margin=0.02)
    assert finding.outcome == "fail"
    assert "surely a loss beyond 2 points" in finding.reason
    assert "wins 0, losses 300" in finding.reason


def test_too_few_graded_items_are_inconclusive_and_say_how_many_would_decide() -> None:
    same = grades(drawn(1, 40, 0.8))
    finding = only(same, same, margin=0.02)
    assert (finding.outcome, finding.items_needed) == ("inconclusive", 150)
    assert "about 150 items would decide, at the observed rates for it" in finding.reason


def test_a_gain_in_grades_can_be_required() -> None:
    theirs = drawn(1, 200, 0.6)
    assert only(grades([grade * 0.9 + 0.1 for grade in theirs]), grades(theirs), superiority=True).outcome == "pass"
    assert only(grades(theirs), grades(theirs), superiority=True).outcome == "inconclusive"


def test_a_mean_grade_below_the_minimum_fails_whatever_the_reference_did() -> None:
    finding = only(grades([0.6, 0.7] * 100), grades([0.2, 0.3] * 100), margin=0.02, minimum=0.66)
    assert finding.outcome == "fail"
    assert finding.reason == "mean grade 65.0% of 200 items is below the minimum 66.0%"
    assert only(grades([0.6, 0.7] * 100), grades([0.2, 0.3] * 100), margin=0.02, minimum=0.65).outcome == "pass"


def test_questions_about_one_image_count_as_fewer() -> None:
    """Forty images with five questions each, of which five images lose half of every grade."""
    theirs = [0.9] * 200
    ours = [0.4] * 25 + [0.95] * 175
    alone = only(grades(ours), grades(theirs), margin=0.05)
    shared = only(grades(ours, images=5), grades(theirs, images=5), margin=0.05)
    assert alone.outcome == "pass"
    assert shared.outcome == "inconclusive"
    assert "; 40 groups of images)" in shared.reason


@pytest.mark.parametrize("graded", [True, False])
def test_a_finding_carries_its_figures(graded: bool) -> None:
    marks = "1" * 190 + "0" * 10
    ours = grades([1.0] * 189 + [0.5] + [0.0] * 10) if graded else answers(marks, "")
    finding = only(ours, answers("1" * 180 + "0" * 20, ""), margin=0.03, minimum=0.5)
    assert finding.outcome == "pass"
    assert (finding.n, finding.wins, finding.losses, finding.threshold) == (200, 10, 0, -0.03)
    assert finding.difference == pytest.approx(0.0475 if graded else 0.05)
    assert finding.lower is not None
    assert finding.upper is not None
    assert -0.03 < finding.lower < finding.difference < finding.upper
    refused = only(ours, answers("1" * 180 + "0" * 20, ""), margin=0.03, minimum=0.99)
    assert (refused.outcome, refused.lower) == ("fail", finding.lower)
