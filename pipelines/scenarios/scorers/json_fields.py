"""An object of JSON, such as the attributes of a product: is it what its schema says, and are its fields right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, Self

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import Field, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from pipelines.scenarios.scorers.json_text import parse_json
from pipelines.scenarios.scorers.overlap import f1
from pipelines.scenarios.scorers.plain import plain
from pipelines.scenarios.scorers.scorer import Scored, Scorer

Leaf = tuple[tuple[str, ...], tuple[str, object]]
"""A path of keys, and a value with its kind: true is not 1."""


class JsonFields(Scorer):
    """F1 of the fields of an object, bare or in one fenced block; an answer that is no JSON is worth 0.

    A field is a path of keys with a value. Texts are compared in plain form and numbers as numbers, lists in any order;
    null says nothing. The mark `schema_valid` says whether the answer is what the schema asks for, `field/NAME` whether
    all of an expected property is right.
    """

    name: Literal["json"]
    definition: dict[str, Any] = Field(alias="schema")
    """JSON Schema of answers, draft 2020-12. Nothing that it refers to is fetched."""

    @model_validator(mode="after")
    def _is_a_schema(self) -> Self:
        try:
            Draft202012Validator.check_schema(self.definition)
        except SchemaError as error:
            raise ValueError(f"no JSON Schema: {error.message}") from None
        itself = Registry().with_resource("", DRAFT202012.create_resource(self.definition)).resolver()
        for reference in _references(self.definition):
            try:
                itself.lookup(reference)
            except Unresolvable:
                raise ValueError(f"refers to {reference}, which is not in the schema itself") from None
        return self

    @property
    def graded(self) -> bool:
        return True

    def score(self, answer: str, expected: str) -> Scored:
        theirs = leaves(parse_json(expected))
        try:
            value = parse_json(answer)
        except ValueError:
            return Scored(0.0, {"schema_valid": False, **_right_fields([], theirs)})
        ours = leaves(value)
        return Scored(f1(ours, theirs), {"schema_valid": not self._problem(value), **_right_fields(ours, theirs)})

    def objection(self, expected: str) -> str | None:
        try:
            value = parse_json(expected)
        except ValueError as error:
            return f"not JSON: {error}"
        if not isinstance(value, dict) or not leaves(value):
            return "not an object with a field that says something"
        return self._problem(value)

    @cached_property
    def _validator(self) -> Draft202012Validator:
        return Draft202012Validator(self.definition, registry=Registry())

    def _problem(self, value: object) -> str | None:
        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:  # of a schema that refers to itself
            return "nested too deeply to be checked"
        return None if error is None else f"{error.json_path}: {error.message}"


def leaves(value: Any) -> list[Leaf]:
    """Every value that is neither null nor holds others, with its path; an index of a list is no part of one."""
    found: list[Leaf] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:  # no recursion: a model may nest as deeply as its answer is long
        path, each = waiting.pop()
        match each:
            case dict():
                waiting += [((*path, key), inner) for key, inner in each.items()]
            case list():
                waiting += [(path, inner) for inner in each]
            case None:
                pass
            case _:
                found.append((path, _comparable(each)))
    return found


def _references(schema: dict[str, Any]) -> Iterator[str]:
    waiting: list[Any] = [schema]
    while waiting:
        match waiting.pop():
            case dict() as inner:
                yield from (inner[key] for key in ("$ref", "$dynamicRef") if isinstance(inner.get(key), str))
                waiting += inner.values()
            case list() as inner:
                waiting += inner


def _comparable(value: str | bool | float) -> tuple[str, object]:
    match value:
        case str():
            return "text", plain(value)
        case bool():
            return "bool", value
        case _:
            return "number", value


def _right_fields(ours: list[Leaf], theirs: list[Leaf]) -> dict[str, bool]:
    """Of each expected property, whether all that is said of it is right."""
    names = dict.fromkeys(path[0] for path, _ in sorted(theirs, key=lambda leaf: leaf[0]))
    return {f"field/{name}": Counter(_of(name, ours)) == Counter(_of(name, theirs)) for name in names}


def _of(name: str, found: list[Leaf]) -> Iterator[Leaf]:
    return (leaf for leaf in found if leaf[0][:1] == (name,))
