"""The split: by seed, whole, and in like shares from every kind of row."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataRejected
from training.chat.split import assign_splits


@given(kinds=st.lists(st.sampled_from("abcd"), min_size=1, max_size=200), seed=st.integers(0, 99))
def test_every_kind_gives_its_share(kinds: list[str], seed: int) -> None:
    splits = assign_splits(kinds, eval_share=0.1, test_share=0.3, seed=seed)
    assert len(splits) == len(kinds)
    for kind, total in Counter(kinds).items():
        counts = Counter(split for k, split in zip(kinds, splits, strict=True) if k == kind)
        assert abs(counts["test"] - 0.3 * total) <= 1
        assert abs(counts["eval"] - 0.1 * total) <= 2


def test_kinds_of_one_row_each_still_give_the_right_total() -> None:
    counts = Counter(assign_splits(range(1000), eval_share=0.1, test_share=0.3, seed=0))
    assert counts["test"] == pytest.approx(300, abs=1)
    assert counts["eval"] == pytest.approx(100, abs=2)


def test_the_seed_decides() -> None:
    first, again, other = (assign_splits("ab" * 50, eval_share=0.1, test_share=0.3, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(DataRejected, match="leave no rows"):
        assign_splits("ab", eval_share=0.5, test_share=0.5, seed=0)
