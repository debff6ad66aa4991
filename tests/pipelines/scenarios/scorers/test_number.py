"""Numbers: how they may be written, and how near is near enough."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.scenarios.scorers.number import Number

MONEY = Number(name="number", absolute=0.01, units={"EUR": 1, "€": 1, "cent": 0.01})


@pytest.mark.parametrize(
    "answer",
    ["1299.5", "1,299.50", "1 299.5", "1\u202f299.50", "1'299.5", "EUR 1,299.50", "€1299.50", "1299.50 eur.", "+1299.5",
     "1.2995e3", "129950 cent", " 1299.5 \n"],
)  # fmt: skip
def test_ways_to_write_a_number(answer: str) -> None:
    assert MONEY.score(answer, "1299.5").score == 1


@pytest.mark.parametrize(
    "answer",
    ["1299,5", "12,99.5", "1299.5 USD", "about 1299.5", "1299.5 1299.5", "", "none", "nan", "inf", "1e9999", "1.2.3"],
)
def test_what_is_no_number_is_marked(answer: str) -> None:
    scored = MONEY.score(answer, "1299.5")
    assert (scored.score, scored.marks) == (0, {"number": False})


@pytest.mark.parametrize(("answer", "right"), [("19.98", 1), ("20.00", 1), ("19.97", 0), ("20.01", 0), ("-19.99", 0)])
def test_the_tolerance_is_exact(answer: str, right: float) -> None:
    # 20.00 - 19.99 is more than 0.01 in binary.
    assert MONEY.score(answer, "19.99").score == right


def test_relative_tolerance_is_of_what_is_expected() -> None:
    number = Number(name="number", relative=0.1)
    assert [number.score(answer, "-200").score for answer in ("-220", "-180", "-221", "220")] == [1, 1, 0, 0]


def test_the_decimal_point_may_be_a_comma() -> None:
    number = Number(name="number", decimal_point=",")
    assert number.score("1.299,50", "1299,5").score == 1
    assert number.score("1299.5", "1299,5").marks == {"number": False}


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("It is 12.5 cm long.", True),
        ("It is 125 mm long", True),
        ("It is 12.5.", True),
        ("12 or 12.5", False),
        ("10-20", False),
        ("model A12", False),
        ("12,5", False),
        ("4K", False),
        ("no idea", False),
    ],
)
def test_within_a_sentence_there_must_be_one_number(answer: str, number: bool) -> None:
    within = Number(name="number", match="within", units={"cm": 1, "mm": 0.1})
    scored = within.score(answer, "12.5")
    assert (scored.score, scored.marks) == (float(number), {"number": number})


@pytest.mark.parametrize(
    "answer",
    [
        "-$5",
        "$-5",
        "The change is -$5.",
        "minus 5",
        "Minus $5",
        "minus-5",
        "negative 5",
        "\u20135",
        "\u22125",
        "is:-5",
        "-5 $",
    ],
)
def test_a_sign_is_not_lost(answer: str) -> None:
    within = Number(name="number", match="within", units={"$": 1})
    assert [within.score(answer, expected).score for expected in ("5", "-5")] == [0, 1]


@pytest.mark.parametrize("answer", ["- 5", "- $5", "--5", "\u00b15", "minus -5", "-$-5", "5\u20137"])
def test_a_sign_that_is_unclear_makes_no_number(answer: str) -> None:
    within = Number(name="number", match="within", units={"$": 1})
    assert [within.score(answer, expected).marks for expected in ("5", "-5")] == [{"number": False}] * 2


@pytest.mark.parametrize("answer", ["The answer \u2014 5.", "The answer\u20145", "GPT-5", "+5", "terminus 5"])
def test_a_dash_between_words_is_no_sign(answer: str) -> None:
    assert Number(name="number", match="within").score(answer, "5").score == 1


def test_an_answer_of_dashes_takes_no_time() -> None:
    started = time.process_time()
    Number(name="number", match="within", units={"$": 1}).score("-" * 1_000, "5")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "options",
    [{"absolute": math.inf}, {"absolute": math.nan}, {"units": {"cm": 0}}, {"units": {"cm": math.inf}},
     {"units": {"": 2}}, {"units": {"EUR": 1, "eur": 2}}],
)  # fmt: skip
def test_options_with_which_a_number_means_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Number(name="number", **options)


def test_what_is_expected_must_be_a_number() -> None:
    assert MONEY.objection("twelve") == "holds no number, or several"
    assert MONEY.objection("12") is None


@settings(deadline=None)
@given(st.decimals(-(10**9), 10**9, places=4), st.floats(0, 0.5))
def test_every_number_is_near_itself(value: object, tolerance: float) -> None:
    number = Number(name="number", relative=tolerance)
    assert number.score(str(value), f"{value:f}").score == 1
