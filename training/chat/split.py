"""Who goes into train, eval and test: by seed, and in like shares from every kind of row."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from pipelines.errors import DataRejected
from training.chat.messages import Split


def assign_splits(kinds: Sequence[Hashable], *, eval_share: float, test_share: float, seed: int) -> list[Split]:
    """Give each row a split.

    Rows are ordered by kind, at random within it, and taken at even distances: every kind gives its share, and kinds
    of one row each still give the right total.

    Args:
        kinds: What each row is (slice and answer).
        eval_share: Share of all rows.
        test_share: Share of all rows.
        seed: Decides the order.

    Raises:
        DataRejected: The shares leave nothing to train on.
    """
    if eval_share + test_share >= 1:
        raise DataRejected(
            f"data.eval_share {eval_share} and data.test_share {test_share} leave no rows to train on; lower one"
        )
    order = _order(kinds, seed)
    test = _every(order, test_share)
    rest = [i for i in order if i not in test]
    evaluation = _every(rest, eval_share / (1 - test_share))
    return ["test" if i in test else "eval" if i in evaluation else "train" for i in range(len(kinds))]


def _order(kinds: Sequence[Hashable], seed: int) -> list[int]:
    random_order = list(range(len(kinds)))
    shuffle = random.Random(seed)
    shuffle.shuffle(random_order)
    distinct = sorted(set(kinds), key=repr)
    shuffle.shuffle(distinct)
    rank = {kind: i for i, kind in enumerate(distinct)}
    return sorted(random_order, key=lambda i: rank[kinds[i]])


def _every(items: Sequence[int], share: float) -> set[int]:
    return {item for i, item in enumerate(items) if int((i + 1) * share) > int(i * share)}
