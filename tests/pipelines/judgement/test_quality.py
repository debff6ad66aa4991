"""Right as often as the reference: surely, surely not, or how many items would decide."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate, Requirement
from pipelines.judgement.paired import pairs
from pipelines.judgement.quality import quality
from pipelines.scores import by_cluster
from pipelines.statistics import Pairs
from tests.pipelines.judgement.sides import GOOD, POOR, answers, side

BETTER = Gate(requirements=(Requirement(slice="new", superiority=True),))


def only(rules: Gate, new: str, reference: str, images: int = 0) -> Finding:
    """The finding on the slice `new`."""
    [finding] = quality(
        rules, side(answers(new, "", images=images)), side(answers(reference, "", images=images), "base"), None
    )
    return finding


def within(margin: float) -> Gate:
    return Gate(requirements=(Requirement(slice="new", margin=margin),))


def test_too_few_items_are_inconclusive_and_say_how_many_would_decide() -> None:
    finding = only(within(0.02), "1" * 29 + "0", "1" * 29 + "0")
    assert finding.outcome == "inconclusive"
    assert finding.items_needed == 133
    assert "about 133 items would decide, at the observed rates for it" in finding.reason


def test_an_observed_loss_beyond_the_margin_would_be_decided_against_the_candidate() -> None:
    finding = only(within(0.02), "1" * 94 + "0" * 6, "1" * 98 + "0" * 2)
    assert finding.outcome == "inconclusive"
    assert "at the observed rates against it" in finding.reason


def test_an_observed_loss_within_the_margin_would_be_decided_for_it() -> None:
    finding = only(within(0.02), "1" * 97 + "0" * 3, "1" * 98 + "0" * 2)
    assert finding.outcome == "inconclusive"
    assert "at the observed rates for it" in finding.reason


def test_what_is_decided_needs_no_items() -> None:
    assert only(within(0.02), GOOD, POOR).items_needed is None


def test_a_gain_is_required_where_the_config_asks_for_it() -> None:
    assert only(BETTER, GOOD, POOR).outcome == "pass"
    assert "surely better" in only(BETTER, GOOD, POOR).reason
    assert only(BETTER, POOR, GOOD).outcome == "fail"
    assert "surely worse" in only(BETTER, POOR, GOOD).reason
    slight = only(BETTER, "1" * 590 + "0" * 10, "1" * 588 + "0" * 12)
    assert slight.outcome == "inconclusive"
    assert "it may be no better; about" in slight.reason


def test_the_same_answers_never_show_a_gain() -> None:
    finding = only(BETTER, GOOD, GOOD)
    assert (finding.outcome, finding.items_needed) == ("inconclusive", None)
    assert "no number of items would decide" in finding.reason


def test_a_requirement_says_one_thing() -> None:
    with pytest.raises(ValidationError, match="leave out one of the two"):
        Requirement(slice="new", margin=0.02, superiority=True)
    with pytest.raises(ValidationError, match="say what loss is tolerated"):
        Requirement(slice="new")


def test_questions_about_one_image_count_as_fewer() -> None:
    """Ten images with four questions each, all four wrong together: 10 losses, not 40."""
    candidate, reference = "0" * 12 + "1" * 388, "1" * 400
    alone, shared = only(within(0.05), candidate, reference), only(within(0.05), candidate, reference, images=4)
    assert alone.outcome == "pass"
    assert shared.outcome == "inconclusive"
    assert "100 groups of images, counted as" in shared.reason
    assert shared.items_needed is not None
    assert shared.items_needed > 400


def test_an_image_for_each_question_changes_nothing() -> None:
    assert only(within(0.02), GOOD, POOR, images=1) == only(within(0.02), GOOD, POOR)


def test_clusters_are_those_of_the_candidates_report() -> None:
    """That of a champion of an earlier version does not say which items show the same images."""
    candidate, reference = answers("11", "1", images=2), answers("10", "1")
    changes = [answer.grade - reference[item].grade for item, answer in candidate.items()]
    assert pairs(by_cluster(zip(candidate.values(), changes, strict=True))) == (Pairs(1, 0, 2), Pairs(0, 0, 1))
    assert sorted(map(len, by_cluster(zip(reference.values(), changes, strict=True)))) == [1, 1, 1]
