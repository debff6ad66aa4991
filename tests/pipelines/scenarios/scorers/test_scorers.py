"""What holds of every scorer, whatever is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipelines.scenarios.scorers.registry import AnyScorer
from pipelines.scenarios.scorers.scorer import Scorer

SCHEMA = {"type": "object", "properties": {"brand": {"type": "string"}}}
SCORERS: dict[str, tuple[Scorer, str]] = {
    option["name"]: (TypeAdapter(AnyScorer).validate_python(option), expected)
    for option, expected in (
        ({"name": "exact"}, "7"),
        ({"name": "text"}, "Seven"),
        ({"name": "set"}, "red, green"),
        ({"name": "hierarchy"}, "Audio > Headphones"),
        ({"name": "json", "schema": SCHEMA}, '{"brand": "Norvik", "price": {"amount": 3.5}}'),
        ({"name": "anls"}, "Alto 45"),
        ({"name": "number", "absolute": 0.1, "units": {"cm": 1}, "match": "within"}, "12.5"),
        ({"name": "classes", "labels": {"a": [], "b": ["bee"]}, "abstain": ["unsure"], "match": "within"}, "a"),
    )
}
TEXTS = st.one_of(
    st.text(),
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps),
    st.dictionaries(st.text(), st.integers()).map(json.dumps),
    st.floats().map(str),
)


def scorer(**options: Any) -> Scorer:
    return TypeAdapter(AnyScorer).validate_python(options)


@pytest.mark.parametrize("name", SCORERS)
@settings(deadline=None)
@given(answer=TEXTS)
@example(answer="")
@example(answer="[" * 100_000)
@example(answer="9" * 100_000)
@example(answer="1e999")
@example(answer='{"brand": NaN}')
def test_a_score_is_between_0_and_1_whatever_is_answered(name: str, answer: str) -> None:
    one, expected = SCORERS[name]
    assert 0 <= one.score(answer, expected).score <= 1


@pytest.mark.parametrize("name", SCORERS)
def test_what_is_expected_is_worth_1_and_nothing_is_worth_less(name: str) -> None:
    one, expected = SCORERS[name]
    assert one.objection(expected) is None
    assert one.score(one.ideal(expected), expected).score == 1
    assert one.score("", expected).score == 0


def test_every_scorer_is_tried_here() -> None:
    tags = TypeAdapter(AnyScorer).json_schema()["discriminator"]["mapping"]
    assert set(tags) == set(SCORERS)


@pytest.mark.parametrize("options", [{"name": "bleu"}, {"name": "exact", "threshold": 1}, {"threshold": 0.5}])
def test_an_unknown_scorer_or_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        scorer(**options)
