"""A model from a published checkpoint, piece by piece: read, merge, round, write. The model is never built.

Threads read and compute, one puts the results in order and hashes them, one for each file writes: disk and cores work
at the same time. What an interrupted attempt has finished is kept.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from pipelines.schemes import Scheme
from pipelines.system.machine import require_disk, require_memory
from pipelines.system.manifest import text_digest
from training.int8 import Rounded, pack
from training.merge import LowRank
from training.weights.arithmetic import Arithmetic, Computed, arithmetic
from training.weights.checkpoint import Checkpoint, Update, tensors_of
from training.weights.journal import Journal
from training.weights.ordered import in_order
from training.weights.pieces import Piece, cut
from training.weights.progress import passing
from training.weights.shards import Spec, as_bytes
from training.weights.writer import ModelWriter, Written, split

MARGIN = 1.02
"""Of the free disk: headers, tokenizer, file system."""

MEMORY_BYTES = 2**30
"""Host memory of a pass, whatever the model's size."""

MOST_THREADS = 6
"""Each has buffers, and on a GPU a stream with memory of its own; more would not make a disk faster."""

AHEAD_BYTES = 2**28
"""Of the sources of pieces that are begun and not written yet: with all that they become, half of the memory or so."""

FORMAT = "1"
"""Raised when the same input comes to give other bytes: what an older version has begun is then not continued."""


@dataclass(frozen=True)
class Figures:
    """What was measured while the weights passed by."""

    errors: tuple[float, ...]
    """||rounded - merged|| / ||merged|| of each matrix that was rounded."""

    files: dict[str, list[Written]]
    """By name of the model."""

    read_bytes: int
    """Of the sources, in this attempt: what an earlier one finished is not read again."""

    seconds: float
    peak_rss_gib: float
    """The most resident memory that the process has had by then."""


@dataclass(frozen=True)
class Pass:
    """One pass over a checkpoint that writes some models."""

    checkpoint: Checkpoint
    update: Update | None
    schemes: Mapping[str, Scheme]
    """By name of the model's folder."""

    max_bytes: float
    """Size of one file."""

    device: str = "cpu"
    """That does the arithmetic, `cpu` or `cuda`."""

    def run(self, folder: Path) -> Figures:
        """Write the weights of every model into its unfinished folder.

        Args:
            folder: Where the models will lie. What is there under their names is removed.

        Raises:
            ExportRejected: A weight is not finite, or a scheme does not fit it.
            MachineUnfit: The disk or the memory is too small.
        """
        began = time.monotonic()
        groups = cut(self.checkpoint.planned)
        numbers = self._shards(groups)
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder, list(self.schemes), self._key())
        writers = {name: self._writer(journal, name, groups, numbers) for name in self.schemes}
        _require_room(folder, journal, writers)
        kept = frozenset(journal.done)
        tasks = [(number, piece) for number, group in zip(numbers, groups, strict=True) for piece in group]
        # More than memory holds is dropped from the page cache at once: the kernel takes longer to make room for it.
        moved = sum(piece.nbytes for _, piece in tasks) + sum(writer.nbytes for writer in writers.values())
        cached = moved < psutil.virtual_memory().available
        with ExitStack() as stack, one_thread_each():
            for name, writer in writers.items():
                shutil.rmtree(folder / name, ignore_errors=True)
                stack.enter_context(writer)
            self._stream(tasks, writers, journal, cached=cached)
        done = [journal.done[number] for number in sorted(journal.done)]
        return Figures(
            errors=tuple(error for shard in done for error in shard.errors),
            files={name: [shard.files[name] for shard in done] for name in self.schemes},
            read_bytes=sum(piece.nbytes for number, piece in tasks if number not in kept),
            seconds=time.monotonic() - began,
            peak_rss_gib=peak_rss_gib(),
        )

    def _shards(self, groups: Sequence[Sequence[Piece]]) -> list[int]:
        """The same cuts in every model, so that an interrupted pass goes on in all of them at once."""
        sizes = [
            max(sum(spec.nbytes for spec in _tensors(group, scheme)) for scheme in self.schemes.values())
            for group in groups
        ]
        return split(sizes, self.max_bytes)

    def _writer(
        self, journal: Journal, name: str, groups: Sequence[Sequence[Piece]], numbers: Sequence[int]
    ) -> ModelWriter:
        shards: list[list[Spec]] = [[] for _ in range(numbers[-1] + 1)]
        for number, group in zip(numbers, groups, strict=True):
            shards[number] += _tensors(group, self.schemes[name])
        return ModelWriter(
            journal.unfinished(name), shards, lambda number, written: journal.finished(name, number, written)
        )

    def _key(self) -> str:
        """Everything that decides the bytes: devices add up a product in orders of their own."""
        schemes = [f"{name}={scheme}" for name, scheme in self.schemes.items()]
        adapter = self.update.digest if self.update else ""
        base = (self.checkpoint.digest, self.checkpoint.state)
        return text_digest(FORMAT, *base, adapter, str(self.max_bytes), self.device, *schemes)

    def _stream(
        self, tasks: Sequence[tuple[int, Piece]], writers: Mapping[str, ModelWriter], journal: Journal, *, cached: bool
    ) -> None:
        left = [task for task in tasks if task[0] not in journal.done]
        total = sum(piece.nbytes for _, piece in tasks)
        threads = _threads([piece for _, piece in tasks])
        compute = arithmetic(self.device, self.schemes)
        worked = in_order(
            lambda task: self._work(compute, task[1], cached=cached), left, threads=threads, ahead=2 * threads
        )
        done = total - sum(piece.nbytes for _, piece in left)
        # Closed before anything else is: threads that still compute must not outlive what they write to.
        with passing("exporting", total, done) as advance, closing(worked) as results:
            for (number, piece), computed in results:
                journal.note(number, [one.error for one in computed.values() if one.error is not None])
                for name, one in computed.items():
                    for tensor, offset, data in _stored(piece, one, self.schemes[name]):
                        writers[name].write(number, tensor, offset, as_bytes(data))
                advance(piece.nbytes)

    def _work(self, compute: Arithmetic, piece: Piece, *, cached: bool) -> dict[str, Computed]:
        stored = compute.buffer(piece)
        piece.source.read_bytes(as_bytes(stored), piece.begin, cached=cached)
        return compute.compute(piece, stored, self._update(piece))

    def _update(self, piece: Piece) -> LowRank | None:
        if self.update is None:
            return None
        first, last = piece.parts[0], piece.parts[-1]
        rows = slice(first.update_rows.start, last.update_rows.stop)
        return self.update.lora.update(first.planned.target, first.planned.expert, rows)


def _threads(pieces: Sequence[Piece]) -> int:
    """As many as there are cores and one that reads, unless pieces are so large that they would fill the memory."""
    room = AHEAD_BYTES // max(1, *(2 * piece.nbytes for piece in pieces))
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) + 1, room))


def peak_rss_gib() -> float:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let products use one core each: pieces are computed side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(group: Sequence[Piece], scheme: Scheme) -> list[Spec]:
    """All that a group of pieces becomes; the parts of a tensor are one tensor."""
    outputs = {part.planned.output.name: part.planned.output for piece in group for part in piece.parts}
    return [spec for output in outputs.values() for spec in tensors_of(output, scheme)]


def _stored(piece: Piece, computed: Computed, scheme: Scheme) -> Iterator[tuple[str, int, torch.Tensor]]:
    """What goes into files: name of the tensor, offset in its bytes, and what stands there."""
    row = 0
    for part in piece.parts:
        rows = slice(row, row + part.last - part.first)
        row = rows.stop
        names = [spec.name for spec in tensors_of(part.planned.output, scheme)]
        for name, data in zip(names, _tensors_of(computed, rows, scheme), strict=False):
            yield name, part.first * data.nbytes // max(len(data), 1), data
        if len(names) == 3 and part.first == 0:
            yield names[2], 0, torch.tensor(part.planned.output.shape)


def _tensors_of(computed: Computed, rows: slice, scheme: Scheme) -> tuple[torch.Tensor, ...]:
    """In the order of `tensors_of`."""
    if not isinstance(computed.matrix, Rounded):
        return (computed.matrix[rows],)
    assert scheme.bits
    steps = computed.matrix.steps[rows]
    return steps if scheme.int8_activations else pack(steps, scheme.bits), computed.matrix.scale[rows]


def _require_room(folder: Path, journal: Journal, writers: Mapping[str, ModelWriter]) -> None:
    there = sum(written.size for shard in journal.done.values() for written in shard.files.values())
    needed = int(MARGIN * sum(writer.nbytes for writer in writers.values())) - there
    require_disk(folder, max(needed, 0), "the export")
    require_memory(MEMORY_BYTES, "the export")
