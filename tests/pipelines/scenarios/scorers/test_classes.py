"""Classification: rates for each class, and what a model leaves open."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.evaluation import Answer
from pipelines.scenarios.metrics import marked_shares
from pipelines.scenarios.scorers.classes import Classes

SCAN = Classes(
    name="classes",
    labels={"normal": ("no abnormality",), "abnormal": ("abnormality",)},
    abstain=("unsure", "cannot tell"),
)
TALK = SCAN.model_copy(update={"match": "within"})


def answers(scorer: Classes, counts: dict[tuple[str, str], int]) -> list[Answer]:
    """So many answers of each kind: (answered, expected)."""
    found = []
    for (text, expected), count in counts.items():
        scored = scorer.score(text, expected)
        for _ in range(count):
            found.append(
                Answer(
                    item=str(len(found)), slice="liver/scan", expected=expected, text=text, finish_reason="stop",
                    seconds=0.1, score=scored.score, marks=scored.marks,
                )
            )  # fmt: skip
    return found


def test_sensitivity_and_specificity_of_the_published_example() -> None:
    # Altman and Bland, Diagnostic tests 1, BMJ 308 (1994): liver scans of 344 patients; 231/258 = 0.90, 54/86 = 0.63.
    shares = marked_shares(
        answers(
            SCAN,
            {
                ("abnormal", "abnormal"): 231,
                ("normal", "abnormal"): 27,
                ("abnormal", "normal"): 32,
                ("normal", "normal"): 54,
            },
        )
    )
    sensitivity, specificity = shares["liver/scan/sensitivity/abnormal"], shares["liver/scan/specificity/abnormal"]
    assert (sensitivity.correct, sensitivity.n) == (231, 258)
    assert (specificity.correct, specificity.n) == (54, 86)
    assert shares["liver/scan/sensitivity/normal"].share == specificity.share  # two classes mirror each other
    assert (shares["liver/scan/abstained"].correct, shares["liver/scan/abstained"].n) == (0, 344)
    assert sensitivity.low < sensitivity.share < sensitivity.high


def test_to_leave_open_costs_sensitivity_and_no_specificity() -> None:
    shares = marked_shares(
        answers(SCAN, {("unsure", "abnormal"): 3, ("Abnormal.", "abnormal"): 1, ("unsure", "normal"): 4})
    )
    assert shares["liver/scan/sensitivity/abnormal"].share == 1 / 4
    assert shares["liver/scan/specificity/abnormal"].share == 1
    assert (shares["liver/scan/abstained"].correct, shares["liver/scan/abstained"].n) == (7, 8)
    assert shares["liver/scan/recognised"].share == 1


def test_what_cannot_be_told_should_be_left_open() -> None:
    scored = SCAN.score("Cannot tell.", "unsure")
    assert scored.score == 1
    assert "abstained" not in scored.marks  # rightly so, which no limit should count
    assert scored.marks["specificity/normal"]
    assert SCAN.score("normal", "unsure").score == 0


def test_an_abstention_may_be_worth_something() -> None:
    assert SCAN.score("unsure", "normal").score == 0
    assert SCAN.model_copy(update={"abstention_score": 0.5}).score("unsure", "normal").score == 0.5


@pytest.mark.parametrize("answer", ["", "a normal scan", "normal abnormal", "something else"])
def test_an_answer_that_is_not_recognised_names_no_class(answer: str) -> None:
    scored = SCAN.score(answer, "normal")
    assert scored.score == 0
    assert scored.marks == {
        "recognised": False, "sensitivity/normal": False, "specificity/abnormal": True, "abstained": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("I see no abnormality.", "normal"),  # the longest phrase counts, and its words for no other
        ("There is an abnormality", "abnormal"),
        ("This is NORMAL", "normal"),
        ("No abnormality. No abnormality.", "normal"),  # neighbours share the space between them
        ("abnormalities", None),  # words, not parts of them
        ("normal, or abnormal?", None),
        ("unsure, maybe normal", None),
    ],
)
def test_within_a_sentence_one_class_must_be_named(answer: str, label: str | None) -> None:
    scored = TALK.score(answer, "normal")
    assert scored.marks["recognised"] == (label is not None)
    assert scored.score == (label == "normal")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"labels": {"a": ["x"], "b": ["X."]}}, "would name two things"),
        ({"labels": {"a": [], "b": []}, "abstain": ["A"]}, "would name two things"),
        ({"labels": {"a": []}}, "at least 2"),
        ({"labels": {"a": [], "b": [" "]}}, "empty"),
    ],
)
def test_phrases_are_unmistakable(options: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Classes(name="classes", **options)


def test_what_is_expected_must_be_a_class() -> None:
    assert SCAN.objection("cyst") == "names no class, or several; the classes are normal, abnormal"
