"""The section `gate` of the config."""

from __future__ import annotations

from collections import Counter
from typing import Self

from pydantic import Field, model_validator

from pipelines.section import Section


class Requirement(Section):
    """What one slice of the test split must show: no loss beyond a margin, or a gain."""

    slice: str
    """Name of the slice."""

    margin: float | None = Field(None, ge=0, le=1)
    """Largest loss that is tolerated, as a share of the items or of the mean grade: 0.02 is two points."""

    superiority: bool = False
    """Instead of a margin: the candidate must surely be better than the reference."""

    minimum: float = Field(0.0, ge=0, le=1)
    """Least share of right answers, or mean grade, whatever the reference did."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.superiority and self.margin is not None:
            raise ValueError(f"{self.slice}: a candidate that must be better has no margin; leave out one of the two")
        if not self.superiority and self.margin is None:
            raise ValueError(f"{self.slice}: say what loss is tolerated (margin: 0.02), or superiority: true")
        return self

    @property
    def threshold(self) -> float:
        """What the difference from the reference must surely exceed: a share of the items, not above 0."""
        return -(self.margin or 0.0)


class Limit(Section):
    """What one share of marked answers must be, whatever the reference did. The observed share counts; its interval is
    shown beside it.
    """

    metric: str
    """Its name in the report, such as `catalog/attributes/schema_valid` or `x-ray/sensitivity/fracture`."""

    minimum: float | None = Field(None, ge=0, le=1)
    maximum: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"{self.metric}: say a minimum, a maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"{self.metric}: no share is at least {self.minimum:g} and at most {self.maximum:g}")
        return self


class Gate(Section):
    """May a candidate replace the champion? Without a champion it is compared with the base."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the one-sided bounds."""

    requirements: tuple[Requirement, ...] = Field(min_length=1)
    """All must hold, beside those that scenarios bring. A slice of the test split without a requirement is refused."""

    quantization_margin: float = Field(0.02, ge=0, le=1)
    """Largest loss tolerated against the merged bf16 model, where it was measured."""

    limits: tuple[Limit, ...] = ()
    """Of shares that the report names, beside those that a scenario brings."""

    max_empty: float = Field(0.01, ge=0, le=1)
    """Largest share of answers without a word, whatever the reference did."""

    max_cut: float = Field(0.05, ge=0, le=1)
    """Largest share of answers that were cut at evaluate.max_new_tokens, or at that of their scenario."""

    max_latency_ratio: float | None = Field(None, gt=0)
    """Largest 99th percentile of the seconds an answer takes, as a multiple of the reference's: 1.2 is a fifth slower.
    None: not judged."""

    max_memory_ratio: float | None = Field(None, gt=0)
    """Largest peak memory, of the card or on a CPU of the engine's processes, as a multiple of the reference's. None:
    not judged."""

    attempts: int = Field(20, ge=1)
    """Different candidates that may be judged on one test split against the same reference. Each look at sealed items
    uses them up a little: of twenty candidates whose loss is the margin, about one passes at 95 % confidence. Say why
    beside it where you raise it."""

    @model_validator(mode="after")
    def _has_one_requirement_a_slice(self) -> Self:
        counts = Counter(requirement.slice for requirement in self.requirements)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"slices with two requirements: {', '.join(twice)}; leave one for each")
        return self
