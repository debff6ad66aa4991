"""What counts in a demand, and when it fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.budget.demand import Demand, Line, largest

LINES = (
    Line("weights", 60, "x"),
    Line("forward", 20, "x", "passing"),
    Line("backward", 30, "x", "passing"),
    Line("states", 500, "x", "apart"),
    Line("context", 2, "x", "margin"),
)


def test_of_what_passes_the_largest_counts_and_of_what_is_apart_nothing() -> None:
    demand = Demand("training", LINES, 100)
    assert demand.nbytes == 92
    assert demand.peak_bytes == 90  # no allocator sees the margin
    assert [line.name for line in LINES if demand.counts(line)] == ["weights", "backward", "context"]


@pytest.mark.parametrize(("limit", "verdict"), [(100, "fits"), (99, "tight"), (92, "tight"), (91, "does not fit")])
def test_the_verdict(limit: float, verdict: str) -> None:
    assert Demand("training", LINES, limit).verdict == verdict


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 300))
def test_the_largest_is_found(most: int, edge: int, step: int) -> None:
    found = largest(lambda value: value <= edge, most, step)
    expected = min(most, edge) // step * step
    assert found == (expected or None)
