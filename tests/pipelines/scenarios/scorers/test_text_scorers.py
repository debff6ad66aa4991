"""Exact, plain text and ANLS."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scenarios.scorers.anls import Anls
from pipelines.scenarios.scorers.exact import Exact
from pipelines.scenarios.scorers.plain import plain
from pipelines.scenarios.scorers.text import Text

ANLS = Anls(name="anls")


def test_exact_forgives_white_space_at_the_ends_alone() -> None:
    exact = Exact(name="exact")
    assert exact.score(" 7\n", "7").score == 1
    assert exact.score("7.", "7").score == 0


@pytest.mark.parametrize(
    "answer",
    [
        "the digit is seven",
        "The  digit is\nseven.",
        "THE DIGIT IS SEVEN!",
        "\uff34he digit is seven",
        "“The digit is seven”",
    ],
)
def test_text_forgives_case_punctuation_white_space_and_forms_of_characters(answer: str) -> None:
    assert Text(name="text").score(answer, "The digit is seven.").score == 1


@pytest.mark.parametrize(("answer", "expected"), [("15", "1.5"), ("?", "!"), ("$5", "5"), ("eight", "seven")])
def test_text_tells_apart_what_differs(answer: str, expected: str) -> None:
    assert Text(name="text").score(answer, expected).score == 0


def test_any_of_the_accepted_texts_is_right() -> None:
    text = Text(name="text")
    assert [text.score(answer, '["Color", "Colour"]').score for answer in ("colour", "color", "hue")] == [1, 1, 0]
    assert text.score("[1]", "[1]").score == 1  # no list of texts, so a text itself


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("sitting", "kitten", 1 - 3 / 7),  # three edits: Levenshtein's textbook example
        ("hello", "HELLO ", 1),
        ("helo", "hello", 0.8),
        ("ab", "ac", 0),  # half is wrong: NL is not below the threshold
        ("abc", "abx", 1 - 1 / 3),
        ("", "abc", 0),
    ],
)
def test_anls(answer: str, expected: str, score: float) -> None:
    assert ANLS.score(answer, expected).score == pytest.approx(score)


def test_anls_takes_the_best_of_the_accepted_texts() -> None:
    assert ANLS.score("Coca Cola", '["Pepsi", "Coca-Cola"]').score == pytest.approx(8 / 9)


@settings(deadline=None)
@given(st.text(), st.text(min_size=1))
def test_anls_is_0_or_above_one_minus_the_threshold(answer: str, expected: str) -> None:
    score = ANLS.score(answer, expected).score
    assert score == 0 or score > 0.5


@settings(deadline=None)
@given(st.text())
def test_plain_form_has_no_case_and_single_spaces(text: str) -> None:
    assert plain(text) == plain(f"  {text}\n")
    assert "  " not in plain(text) or plain(text) == text.strip()
