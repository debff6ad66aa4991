"""The plan cut into pieces: what one read brings, and which rows of which exported tensors it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from training.weights.layout import Planned
from training.weights.shards import Stored

BLOCK_BYTES = 8 * 2**20
"""The largest piece of a tensor that needs not be read whole: some of them are in flight at once."""


@dataclass(frozen=True)
class Part:
    """Some rows of one exported tensor."""

    planned: Planned
    first: int
    """Of its rows."""

    last: int
    """Exclusive."""

    @property
    def update_rows(self) -> slice:
        """Where these rows are in the adapter's matrix."""
        start = self.planned.span[0] if self.planned.span else 0
        return slice(start + self.first, start + self.last)


@dataclass(frozen=True)
class Piece:
    """A matrix as it is stored, contiguous in its file."""

    source: Stored
    begin: int
    """Of its bytes, in the tensor's."""

    shape: tuple[int, int]
    """[rows, columns] as stored; [in, out] where transposed."""

    transposed: bool
    parts: tuple[Part, ...]
    """In the order of the output channels; all of them together are the matrix."""

    @property
    def nbytes(self) -> int:
        """Size of what is read."""
        return self.source.dtype.itemsize * prod(self.shape)


def cut(planned: Sequence[Planned], block_bytes: int = BLOCK_BYTES) -> list[list[Piece]]:
    """The pieces of each group of tensors that share a file: all that one stored matrix becomes, in order."""
    groups = []
    for _, members in groupby(enumerate(planned), lambda one: _stored_matrix(*one)):
        together = [one for _, one in members]
        groups.append([_of_stack(together)] if together[0].from_stack else list(_blocks(together[0], block_bytes)))
    return groups


def _stored_matrix(index: int, planned: Planned) -> object:
    """Gate and up of an expert are one matrix of the stack."""
    return (planned.source.name, planned.expert) if planned.from_stack else index


def _of_stack(together: Sequence[Planned]) -> Piece:
    first = together[0]
    assert first.expert is not None
    shape = first.source.shape[1:]
    begin = first.expert * first.source.dtype.itemsize * prod(shape)
    parts = tuple(Part(one, 0, one.output.shape[0]) for one in together)
    return Piece(first.source, begin, (shape[0], shape[1]), first.transposed, parts)


def _blocks(planned: Planned, block_bytes: int) -> Iterator[Piece]:
    shape = planned.source.shape
    rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
    row_bytes = planned.source.dtype.itemsize * columns
    each = max(1, block_bytes // max(row_bytes, 1))
    for first in range(0, max(rows, 1), each):
        last = min(first + each, rows)
        part = Part(planned, first, last)
        yield Piece(planned.source, first * row_bytes, (last - first, columns), False, (part,))
