"""An object of JSON: valid by its schema, right field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.scenarios.scorers.json_fields import JsonFields

SCHEMA = {
    "type": "object",
    "required": ["brand", "price"],
    "additionalProperties": False,
    "properties": {
        "brand": {"type": "string"},
        "price": {
            "type": "object",
            "properties": {"amount": {"$ref": "#/$defs/amount"}, "currency": {"enum": ["EUR", "USD"]}},
        },
        "tags": {"type": "array", "items": {"type": "string"}},
        "new": {"type": ["boolean", "null"]},
    },
    "$defs": {"amount": {"type": "number", "minimum": 0}},
}
FIELDS = JsonFields(name="json", schema=SCHEMA)
EXPECTED = {"brand": "Norvik", "price": {"amount": 1299, "currency": "EUR"}, "tags": ["light", "warm"], "new": True}


def score(answer: object, expected: object = EXPECTED) -> tuple[float, dict[str, bool]]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    scored = FIELDS.score(text, json.dumps(expected))
    return scored.score, scored.marks


def test_the_same_in_another_order_and_fenced_is_right() -> None:
    answer = {"new": True, "tags": ["warm", "Light"], "price": {"currency": "EUR", "amount": 1299.0}, "brand": "NORVIK"}
    fenced = f"```json\n{json.dumps(answer, indent=1)}\n```\n"
    everything = {"schema_valid": True, **{f"field/{name}": True for name in EXPECTED}}
    assert score(answer) == score(fenced) == (1, everything)


@pytest.mark.parametrize(
    ("change", "expected_f1", "valid", "wrong"),
    [
        ({"brand": "Halden"}, 5 / 6, True, {"brand"}),
        ({"price": {"amount": 12.99, "currency": "EUR"}}, 5 / 6, True, {"price"}),
        ({"price": {"amount": "1299", "currency": "EUR"}}, 5 / 6, False, {"price"}),  # a text is no number
        ({"new": None}, 10 / 11, True, {"new"}),  # not said: five of six, and nothing wrong
        ({"new": 1}, 5 / 6, False, {"new"}),  # one is not true
        ({"tags": ["light"]}, 10 / 11, True, {"tags"}),
        ({"tags": ["light", "light", "warm"]}, 12 / 13, True, {"tags"}),
        ({"more": "x"}, 12 / 13, False, set()),
    ],
)
def test_each_field_counts(change: dict[str, Any], expected_f1: float, valid: bool, wrong: set[str]) -> None:
    found, marks = score(EXPECTED | change)
    assert found == pytest.approx(expected_f1)
    assert marks.pop("schema_valid") is valid
    assert {name.removeprefix("field/") for name, right in marks.items() if not right} == wrong


@pytest.mark.parametrize(
    "answer", ["", "Norvik", "{", '{"brand": NaN}', f"Here it is: {json.dumps(EXPECTED)}", "```\n```"]
)
def test_what_is_no_json_is_worth_nothing(answer: str) -> None:
    found, marks = score(answer)
    assert found == 0
    assert set(marks.values()) == {False}


def test_another_kind_of_json_is_invalid_and_does_not_fail() -> None:
    for answer in ("[]", "3", '"Norvik"', "null", "[" * 500 + "]" * 500):
        assert score(answer)[0] == 0
        assert score(answer)[1]["schema_valid"] is False


def test_a_schema_that_refers_to_itself_survives_a_deep_answer() -> None:
    tree = {"type": "object", "properties": {"in": {"$ref": "#"}}, "additionalProperties": False}
    scored = JsonFields(name="json", schema=tree).score('{"in": ' * 900 + "{}" + "}" * 900, '{"in": {"in": {}}}')
    assert scored.marks["schema_valid"] is False


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_a_number_that_no_double_holds_is_no_json(number: str) -> None:
    dozens = JsonFields(name="json", schema={"properties": {"n": {"multipleOf": 0.5}}})
    assert dozens.score(f'{{"n": {number}}}', '{"n": 12}').marks == {"schema_valid": False, "field/n": False}


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ("Norvik", "not JSON"),
        ("[1]", "not an object"),
        ('{"brand": null}', "not an object with a field"),
        ('{"brand": "x"}', "'price' is a required property"),
        ('{"brand": "x", "price": {"amount": -1}}', r"\$\.price\.amount"),
    ],
)
def test_what_is_expected_must_be_valid_itself(expected: str, why: str) -> None:
    import re

    assert re.search(why, FIELDS.objection(expected) or "")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "thing"}, "no JSON Schema"),
        ({"properties": {"a": {"$ref": "https://example.org/a.json"}}}, "not in the schema itself"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "not in the schema itself"),
    ],
)
def test_a_schema_is_whole_and_fetches_nothing(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        JsonFields(name="json", schema=schema)


VALUES = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.text(max_size=5) | st.integers() | st.booleans() | st.lists(st.integers(), max_size=3),
    min_size=1,
)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_f1_is_symmetric_and_1_for_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    free = JsonFields(name="json", schema={})
    one = free.score(json.dumps(ours), json.dumps(theirs)).score
    assert free.score(json.dumps(theirs), json.dumps(ours)).score == one
    assert free.score(json.dumps(ours), json.dumps(dict(reversed(ours.items())))).score == 1
