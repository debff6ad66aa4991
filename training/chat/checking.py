"""Every row of a source read, its images decoded, its tokens counted and its answer masks proven. Never cut."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipelines.artifacts import Reject
from training.chat.encoding import Encoder, Unencodable
from training.chat.masks import prove
from training.chat.messages import Split
from training.chat.progress import RowsProgress
from training.chat.rejects import Unusable, reject
from training.chat.rows import Row, read_row
from training.formats.record import Record
from training.formats.source import Source

THREADS = min(8, os.cpu_count() or 1)
"""Reading, decoding and hashing images leave the interpreter's lock to others."""

AHEAD = 64
"""Rows that are read before they are counted: their images are in memory."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Counted:
    """A usable row and its tokens."""

    row: Row
    tokens: int
    visual: int

    def into(self, split: Split) -> Counted:
        """The row in a split."""
        return replace(self, row=replace(self.row, split=split))


def check_rows(source: Source, images: Path, encoder: Encoder, max_tokens: int) -> tuple[list[Counted], list[Reject]]:
    """Sort the rows of a source into usable ones and rejects.

    Args:
        source: Its records and where their images are.
        images: Folder that usable images are stored in.
        encoder: Counts the tokens.
        max_tokens: Longer rows are rejected.
    """
    rows: list[Counted] = []
    rejects: list[Reject] = []
    seen: set[str] = set()

    def read(record: Record) -> Row | Reject:
        try:
            return read_row(record, source.folder, images, encoder.special, source.style)
        except Unusable as error:
            return reject(record.origin, error.reason, error.detail)

    with RowsProgress(source.total) as progress:
        for found in map_ahead(read, source.records()):
            checked = found if isinstance(found, Reject) else _check(found, encoder, max_tokens, seen)
            progress.row(usable=isinstance(checked, Counted))
            if isinstance(checked, Reject):
                rejects.append(checked)
            else:
                rows.append(checked)
    return rows, rejects


def map_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` in threads, in order, with a bounded number of items under way."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check(row: Row, encoder: Encoder, max_tokens: int, seen: set[str]) -> Counted | Reject:
    """Count a row whose name is new.

    Args:
        seen: Names of the rows before it; gets this one.
    """
    try:
        if row.id in seen:
            raise Unusable("duplicate id", f"{row.id}; rows without an id are named by their place")
        counted = _count(row, encoder, max_tokens)
    except Unusable as error:
        return reject(row.origin, error.reason, error.detail)
    seen.add(row.id)
    return counted


def _count(row: Row, encoder: Encoder, max_tokens: int) -> Counted:
    sizes = [picture.size for picture in row.pictures]
    try:
        outline = encoder.outline(row.chat(), sizes)
        prove(outline, encoder, row.answers, encoder.visual_tokens(sizes))
    except Unencodable as error:
        raise Unusable("not expressible", f"{row.id}: {error}") from None
    except ValueError as error:  # the image processor's own limit on the ratio of width to height
        raise Unusable("unsupported image shape", f"{row.id}: {error}") from None
    tokens = len(outline.input_ids)
    if tokens > max_tokens:
        raise Unusable("too long", f"{row.id}: {tokens} tokens, data.max_tokens is {max_tokens}")
    return Counted(row, tokens, int(outline.image_mask.sum()))
