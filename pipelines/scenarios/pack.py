"""`pack.yaml`: what a scenario pack asks, how answers are scored, and what the gate demands of them."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.config_gate import Limit, Requirement
from pipelines.scenarios.scorers.registry import AnyScorer
from pipelines.section import Section

NAME = r"^[a-z0-9][a-z0-9_-]*$"


class ImageRights(Section):
    """Whose images these are."""

    source: str = Field(min_length=1)
    """Where they come from."""

    license: str = Field(min_length=1)
    """Under which they may be used, such as an SPDX identifier."""


class SliceGate(Section):
    """What a candidate must show on a slice: as in `gate.requirements` of a config."""

    margin: float | None = None
    superiority: bool = False
    minimum: float = 0.0

    @model_validator(mode="after")
    def _is_a_requirement(self) -> Self:
        try:
            self.requirement("gate")
        except ValidationError as error:
            raise ValueError("; ".join(problem["msg"] for problem in error.errors())) from None
        return self

    def requirement(self, name: str) -> Requirement:
        """The same as the gate takes it.

        Args:
            name: Of the slice, in reports.
        """
        return Requirement(slice=name, margin=self.margin, superiority=self.superiority, minimum=self.minimum)


class Slice(Section):
    """Items of one kind, scored alike."""

    scorer: AnyScorer
    gate: SliceGate
    """No loss beyond a margin, or a gain; and the least share of right answers."""

    prompt: str | None = Field(None, min_length=1)
    """What is asked of each item that does not bring a question of its own."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer. None: `evaluate.max_new_tokens` of the config."""

    stop: tuple[str, ...] = Field((), max_length=4)
    """Texts that end an answer, where they are not part of it."""


class Pack(Section):
    """A scenario pack."""

    name: str = Field(pattern=NAME)
    """Its slices are called `name/slice` in reports and by the gate."""

    description: str = Field(min_length=1)
    images: ImageRights
    template: bool = False
    """It has no items and no images: `vlmops scenario import` makes a pack of it and of your own images."""

    slices: dict[str, Slice] = Field(min_length=1)
    limits: tuple[Limit, ...] = ()
    """Of shares of marked answers, such as `attributes/schema_valid`; the name of the pack is put before."""

    @field_validator("slices")
    @classmethod
    def _named(cls, slices: dict[str, Slice]) -> dict[str, Slice]:
        if wrong := [name for name in slices if not re.fullmatch(NAME, name)]:
            raise ValueError(f"{wrong[0]!r} is no name of a slice; use small letters, digits, dashes and underscores")
        return slices

    @model_validator(mode="after")
    def _limits_are_of_slices(self) -> Self:
        for limit in self.limits:
            if limit.metric.split("/")[0] not in self.slices:
                raise ValueError(f"limit {limit.metric}: it must begin with a slice: {', '.join(self.slices)}")
        return self

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """Of the slices, under the names that reports give them."""
        return tuple(each.gate.requirement(f"{self.name}/{name}") for name, each in self.slices.items())

    @property
    def named_limits(self) -> tuple[Limit, ...]:
        """Under the names that reports give the metrics."""
        return tuple(limit.model_copy(update={"metric": f"{self.name}/{limit.metric}"}) for limit in self.limits)
