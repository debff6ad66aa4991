"""A sharded model being written: files in order, each by a thread of its own, hashed as its bytes pass.

A file gets its name when it is whole and on the disk; the index is written last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.errors import MachineUnfit
from pipelines.system.durable import commit, partial_of, write_text
from training.weights.shards import INDEX, Spec, header_bytes

WAITING = 16
"""Pieces of bytes that may wait for the disk: the bound of the memory they take."""

WRITEBACK_BYTES = 32 * 2**20
"""Written between two requests to put them on the disk, so that little is left for the end of a file."""


class _End(Enum):
    """What comes after the last bytes of a file: in the queue too, so that a Ctrl-C comes before or after it."""

    WHOLE = "whole"
    EARLY = "early"


@dataclass(frozen=True)
class Written:
    """A finished file."""

    file: str
    size: int
    sha256: str


class ModelWriter:
    """Takes the bytes of tensors in almost any order within a shard, and the shards in order."""

    def __init__(
        self, folder: Path, shards: Sequence[Sequence[Spec]], finished: Callable[[int, Written], None]
    ) -> None:
        """Announce all tensors.

        Args:
            folder: Where the files go.
            shards: The tensors of each file, in order.
            finished: Called with a shard's number when it is on the disk, by another thread.
        """
        self.folder, self.shards = folder, shards
        self._finished = finished
        self._number: int | None = None
        self._shard: _Shard | None = None
        self._ending: list[_Shard] = []

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(spec.nbytes for shard in self.shards for spec in shard)

    def file(self, number: int) -> str:
        """Name of a shard's file."""
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def write(self, number: int, name: str, offset: int, data: memoryview) -> None:
        """Write some bytes of a tensor of a shard.

        Raises:
            MachineUnfit: The disk is full.
        """
        if number != self._number:
            self._start(number)
        assert self._shard
        self._shard.write(name, offset, data)

    def close(self) -> None:
        """Finish the last file and write the index."""
        self._end()
        self._settle(0)
        weight_map = {spec.name: self.file(i) for i, shard in enumerate(self.shards) for spec in shard}
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
        write_text(self.folder / INDEX, json.dumps(index, indent=1))

    def __enter__(self) -> Self:
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, or after an error leave the unfinished file under its temporary name."""
        try:
            if kind is None:
                self.close()
        finally:
            self._abandon()

    def _start(self, number: int) -> None:
        self._end()
        self._settle(1)
        path = self.folder / self.file(number)
        self._number = number
        self._shard = _Shard(path, self.shards[number], lambda written: self._finished(number, written))

    def _end(self) -> None:
        if self._shard:
            self._shard.finish()
            self._ending.append(self._shard)
            self._shard = None

    def _settle(self, left: int) -> None:
        """Wait until no more than some files are on their way to the disk."""
        while len(self._ending) > left:
            self._ending[0].wait()
            self._ending.pop(0)

    def _abandon(self) -> None:
        for shard in self._ending:
            shard.abandon()
        if self._shard:
            self._shard.abandon()


class _Shard:
    """One file: bytes that come early wait until it is their turn."""

    def __init__(self, path: Path, specs: Sequence[Spec], finished: Callable[[Written], None]) -> None:
        header = header_bytes(specs)
        self._starts: dict[str, int] = {}
        self.size = len(header)
        for spec in specs:
            self._starts[spec.name] = self.size
            self.size += spec.nbytes
        self._next = 0
        self._early: dict[int, memoryview] = {}
        self._file = _File(path, finished)
        self._take(0, memoryview(header))

    def write(self, name: str, offset: int, data: memoryview) -> None:
        if len(data):
            self._take(self._starts[name] + offset, data)

    def finish(self) -> None:
        missing = self.size - self._next
        assert missing == 0, f"{missing} announced bytes of {self._file.path} were not written"
        self._file.finish()

    def wait(self) -> None:
        self._file.wait()

    def abandon(self) -> None:
        self._file.abandon()

    def _take(self, position: int, data: memoryview) -> None:
        assert position >= self._next, f"{self._file.path}: bytes at {position} were written already"
        self._early[position] = data
        while (ready := self._early.pop(self._next, None)) is not None:
            self._file.append(ready)
            self._next += len(ready)


class _File:
    """A file that a thread appends to."""

    def __init__(self, path: Path, finished: Callable[[Written], None]) -> None:
        self.path, self._finished = path, finished
        self._partial = partial_of(path)
        self._queue: queue.Queue[memoryview | _End] = queue.Queue(WAITING)
        self._sha = hashlib.sha256()
        self._size = 0
        self._end: _End | None = None
        self._done = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def append(self, data: memoryview) -> None:
        self._require_no_error()
        self._queue.put(data)
        self._sha.update(data)
        self._size += len(data)

    def finish(self) -> None:
        """Nothing more comes; the thread puts the file on the disk and gives it its name."""
        self._queue.put(_End.WHOLE)

    def wait(self) -> None:
        """Until the thread has ended."""
        self._thread.join()
        self._require_no_error()
        assert self._done, f"the thread that writes {self.path} has failed; its error is above"

    def abandon(self) -> None:
        """End the thread, wherever it is; a file that was finished is still put on the disk."""
        self._queue.put(_End.EARLY)
        self._thread.join()

    def _require_no_error(self) -> None:
        if self._error:
            with full_disk_named(self.path):
                raise self._error

    def _run(self) -> None:
        try:
            self._write_all()
        except OSError as error:
            self._error = error
        finally:
            while self._end is None:  # so that nobody waits for a place in the queue
                self._next()

    def _write_all(self) -> None:
        with self._partial.open("wb", buffering=1 << 20) as stream:
            since = 0
            while (data := self._next()) is not None:
                stream.write(data)
                since += len(data)
                if since >= WRITEBACK_BYTES:
                    # Starts to write what is dirty, and drops what is clean: nobody reads it soon.
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    since = 0
            if self._end is _End.EARLY:
                return
            stream.flush()
            os.fsync(stream.fileno())
        commit(self._partial, self.path)
        self._finished(Written(self.path.name, self._size, self._sha.hexdigest()))
        self._done = True

    def _next(self) -> memoryview | None:
        data = self._queue.get()
        if isinstance(data, _End):
            self._end = data
            return None
        return data


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Give what the system says of a full disk a name and a way out.

    Raises:
        MachineUnfit: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineUnfit(f"{path}: the disk is full; free some and run it again: whole files are kept") from error


def split(sizes: Sequence[int], max_bytes: float) -> list[int]:
    """The shard of each group of tensors, in order; a group larger than a file gets one of its own."""
    numbers, number, size = [], 0, 0
    for nbytes in sizes:
        if size and size + nbytes > max_bytes:
            number, size = number + 1, 0
        numbers.append(number)
        size += nbytes
    return numbers
