"""`items.jsonl`: one question a line, with its images and what is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import Field, JsonValue, ValidationError

from pipelines.scenarios.problem import ITEMS, Problem
from pipelines.section import Section


class Item(Section):
    """One question."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Within the pack."""

    slice: str
    images: tuple[str, ...] = ()
    """Paths below the pack's folder, in the order in which they are shown, before the question."""

    prompt: str | None = Field(None, min_length=1)
    """The question; None: the one of its slice."""

    system: str | None = Field(None, min_length=1)
    """A system message before it."""

    expected: JsonValue
    """Text, or a value of JSON where the scorer takes one."""

    @property
    def expected_text(self) -> str:
        """Text as it is, anything else as JSON."""
        return self.expected if isinstance(self.expected, str) else json.dumps(self.expected, ensure_ascii=False)


def read_items(content: bytes) -> tuple[dict[int, Item], list[Problem]]:
    """The items by line, from 1, and what is wrong with the other lines.

    Args:
        content: Of the file. A line ends where bytes say so: a text may hold what Unicode takes for the end of a line.
    """
    items, problems = {}, []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            items[number] = Item.model_validate_json(line)
        except ValidationError as error:
            problems += [Problem(ITEMS, number, told) for told in _told(error)]
    return items, problems


def _told(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        yield f"{field}: {problem['msg']}" if field else problem["msg"]
