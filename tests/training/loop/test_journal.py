"""What follows from evaluations: the best step, and when it is enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.loop.journal import best_step, evaluations, exhausted

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=12)


@given(LOSSES)
def test_the_best_step_is_the_earliest_of_the_lowest(losses: list[float]) -> None:
    by_step = {10 * number: loss for number, loss in enumerate(losses, 1)}
    assert best_step(by_step) == 10 * (losses.index(min(losses)) + 1)


@pytest.mark.parametrize(
    ("losses", "patience", "enough"),
    [
        ([3, 2, 1], 1, False),
        ([1, 2], 1, True),
        ([1, 2], 2, False),
        ([1, 2, 1], 2, True),  # as good as the best is no improvement
        ([2, 3, 1, 2], 2, False),
        ([1, 2, 3, 4], None, False),
        ([], 1, False),
    ],
)
def test_patience_counts_evaluations_since_the_best(losses: list[float], patience: int | None, enough: bool) -> None:
    assert exhausted(dict(enumerate(losses)), patience) is enough


def test_evaluations_are_read_from_among_other_events() -> None:
    events = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "tokens_per_batch": 64}]
    assert evaluations(events) == {1: 3.0}
