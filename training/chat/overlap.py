"""Rows that say the same: duplicates within a split, and questions of a held-out split that training would see.

What is held out stays as it is; the other row goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.artifacts import Reject
from training.chat.messages import Split
from training.chat.rejects import Origin, reject
from training.chat.rows import Row

SEALED_FROM: dict[Split | None, tuple[Split, ...]] = {"train": ("test", "eval"), "eval": ("test",)}
"""Whose questions the rows of a split must not ask."""


def find_duplicates(rows: Sequence[Row]) -> dict[Origin, Reject]:
    """Rows that ask and answer the same as an earlier one that may be in the same split.

    Args:
        rows: In order, before those without a split are given one: they give way to rows that name theirs.
    """
    first = {(row.split, _content(row)): row for row in reversed(rows)}
    named = {_content(row): row for row in reversed(rows) if row.split}
    found = {}
    for row in rows:
        other = first[row.split, _content(row)]
        if row.split is None:
            other = named.get(_content(row), other)
        if other is not row:
            found[row.origin] = reject(row.origin, "duplicate", f"{row.id}: the same as {other.id} at {other.origin}")
    return found


def find_leaks(rows: Sequence[Row]) -> dict[Origin, Reject]:
    """Rows in which a turn asks what a held-out row asks, of the same images.

    Args:
        rows: Each in its split.
    """
    sealed: dict[tuple[Split | None, str], Row] = {(row.split, row.question): row for row in rows}
    found = {}
    for row in rows:
        for split in SEALED_FROM.get(row.split, ()):
            if other := next((sealed[split, asked] for asked in row.asked if (split, asked) in sealed), None):
                detail = f"{row.id}: {other.id} of the {split} split asks the same of the same images"
                found[row.origin] = reject(row.origin, f"{split} leakage", detail)
                break
    return found


def count_shared_images(rows: Sequence[Row]) -> int:
    """Training rows with an image that a held-out row shows too, with another question: allowed, and worth knowing."""
    held_out = {picture.pixels for row in rows if row.split != "train" for picture in row.pictures}
    return sum(row.split == "train" and any(p.pixels in held_out for p in row.pictures) for row in rows)


def _content(row: Row) -> tuple[str, tuple[str, ...]]:
    return row.question, row.answers
