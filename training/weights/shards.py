"""Safetensors files tensor by tensor: read one slice of one tensor, write a file whose tensors arrive in order.

The format is eight bytes with the length of a JSON header, the header, and the data. Reads are sequential `preadv`
calls: about three times faster than page faults on a cold memory map.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch

from pipelines.errors import ExportRejected
from pipelines.system.durable import commit

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I8": torch.int8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """A tensor by its header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Stored(Spec):
    """A tensor in a file."""

    file: Path
    offset: int
    """Of its first byte in the file."""

    def read(self, index: int | None = None) -> torch.Tensor:
        """The tensor, or one slice of its first dimension; nothing else is read."""
        shape = self.shape if index is None else self.shape[1:]
        size = self.dtype.itemsize * torch.Size(shape).numel()
        if size == 0:
            return torch.empty(shape, dtype=self.dtype)
        buffer = bytearray(size)
        _read_into(self.file, self.offset + (index or 0) * size, memoryview(buffer))
        return torch.frombuffer(buffer, dtype=self.dtype).view(shape)


def read_header(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order of their data.

    Raises:
        ExportRejected: The file is cut short, or holds a type that is not expected in a published model.
    """
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ExportRejected(f"{file}: {name} is {entry['dtype']}; only {', '.join(DTYPES)} can be exported")
        begin, end = entry["data_offsets"]
        tensor = Stored(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), file, 8 + length + begin)
        if end - begin != tensor.nbytes or tensor.offset + tensor.nbytes > file.stat().st_size:
            raise ExportRejected(f"{file}: {name} is cut short; download or export the model again")
        tensors.append(tensor)
    return tensors


def read_headers(folder: Path) -> list[Stored]:
    """The tensors of all safetensors files of a folder."""
    return [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_header(file)]


def split_shards(specs: Sequence[Sequence[Spec]], max_bytes: float) -> list[list[Spec]]:
    """Distribute tensors over files in order; tensors of one group stay together."""
    shards: list[list[Spec]] = [[]]
    size = 0
    for group in specs:
        group_bytes = sum(spec.nbytes for spec in group)
        if shards[-1] and size + group_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1] += group
        size += group_bytes
    return shards


class ModelWriter:
    """Writes a sharded model: headers first, then tensors in the announced order, the index last."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[Spec]], max_bytes: float) -> None:
        """Announce all tensors.

        Args:
            folder: Where the files go.
            groups: The tensors in order; those of a group share a file.
            max_bytes: Size of one file, if no single group is larger.
        """
        self.folder = folder
        self.shards = split_shards(groups, max_bytes)
        self.pending = self._walk()
        self.current: _Shard | None = None

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(spec.nbytes for shard in self.shards for spec in shard)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor."""
        number, spec, first = next(self.pending)
        given = (name, tensor.dtype, tuple(tensor.shape))
        assert (spec.name, spec.dtype, spec.shape) == given, (spec, given)
        if first:
            self._finish()
            self.current = _Shard(self.folder / self._file(number), self.shards[number])
        assert self.current
        self.current.write(tensor)

    def close(self) -> None:
        """Finish the last file and write the index."""
        assert next(self.pending, None) is None, "not every announced tensor was written"
        self._finish()
        weight_map = {spec.name: self._file(i) for i, shard in enumerate(self.shards) for spec in shard}
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def __enter__(self) -> Self:
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, or after an error leave the unfinished file under its temporary name."""
        if kind is None:
            self.close()
        elif self.current:
            self.current.stream.close()

    def _walk(self) -> Iterator[tuple[int, Spec, bool]]:
        for number, shard in enumerate(self.shards):
            for i, spec in enumerate(shard):
                yield number, spec, i == 0

    def _file(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def _finish(self) -> None:
        if self.current:
            self.current.finish()
            self.current = None


class _Shard:
    """One file being written."""

    def __init__(self, path: Path, specs: Sequence[Spec]) -> None:
        self.path, self.partial = path, path.with_name(f".{path.name}.partial")
        self.stream: BinaryIO = self.partial.open("wb", buffering=1 << 22)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in specs:
            ends = [offset, offset + spec.nbytes]
            header[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": ends}
            offset += spec.nbytes
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        self.stream.write(struct.pack("<Q", len(encoded)) + encoded)

    def write(self, tensor: torch.Tensor) -> None:
        # A view of single bytes is the one type that NumPy shares for bf16 too; a scalar has no last dimension to view.
        self.stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        commit(self.partial, self.path)


def _read_into(file: Path, offset: int, view: memoryview) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise ExportRejected(f"{file} ends early; download or export the model again")
            done += count
    finally:
        os.close(descriptor)
