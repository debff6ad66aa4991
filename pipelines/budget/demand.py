"""A demand for memory: what one process needs of the device, line by line, and whether the device has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fits", "tight", "does not fit"]

GIB = 2**30

COMFORTABLE = 0.92
"""Up to this share of the limit a demand fits; above it, it is tight: an estimate may be off by so much."""


@dataclass(frozen=True)
class Line:
    """One part of a demand."""

    name: str
    nbytes: float
    why: str
    """How it comes about, with the settings that decide it."""

    kind: Literal["lasting", "passing", "margin", "apart"] = "lasting"
    """Of the passing ones only the largest counts: they are there one after the other. What is apart can leave the
    device, and counts nowhere. A margin is not seen by the allocator that reports a peak."""


@dataclass(frozen=True)
class Demand:
    """All that one process needs."""

    name: str
    lines: tuple[Line, ...]
    limit_bytes: float
    """What it may use."""

    @property
    def peak_bytes(self) -> float:
        """The most that is allocated at once, as the process itself will measure it."""
        return sum(line.nbytes for line in self.lines if self.counts(line) and line.kind != "margin")

    def counts(self, line: Line) -> bool:
        """Whether one of the lines is part of the sum."""
        if line.kind == "passing":
            return line is max((other for other in self.lines if other.kind == "passing"), key=lambda one: one.nbytes)
        return line.kind != "apart"

    @property
    def nbytes(self) -> float:
        """What it needs, margin included."""
        return sum(line.nbytes for line in self.lines if self.counts(line))

    @property
    def verdict(self) -> Verdict:
        """Fits, tight or not."""
        if self.nbytes > self.limit_bytes:
            return "does not fit"
        return "fits" if self.nbytes <= COMFORTABLE * self.limit_bytes else "tight"


def largest(fits: Callable[[int], bool], most: int, step: int = 1) -> int | None:
    """The largest multiple of `step` up to `most` that fits, or None if not even one step does.

    Args:
        fits: Once false, false for everything larger.
        most: Not exceeded.
        step: At least 1.
    """
    low, high = 0, most // step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle - 1)
    return low * step or None
