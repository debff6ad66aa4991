"""Safetensors files by their headers: what is in one, where, and any part of it read by `preadv`.

The format is eight bytes with the length of a JSON header, the header, and the data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, NonNegativeInt, TypeAdapter

from pipelines.errors import ExportRejected

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer ones."""

INDEX = "model.safetensors.index.json"


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
        tensor = torch.empty(shape, dtype=self.dtype)
        self.read_bytes(as_bytes(tensor), (index or 0) * tensor.nbytes)
        return tensor

    def read_bytes(self, into: memoryview, first: int = 0, *, cached: bool = True) -> None:
        """Fill a buffer with the tensor's bytes from `first` on.

        Args:
            into: The buffer.
            first: Of the bytes.
            cached: Leave what was read in the page cache.

        Raises:
            ExportRejected: The file ends before.
        """
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            _fill(descriptor, into, self.offset + first, self.file)
            if not cached:
                os.posix_fadvise(descriptor, self.offset + first, len(into), os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class _Entry(BaseModel):
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_ENTRIES = TypeAdapter(dict[str, _Entry])


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, of any type."""
    # Single bytes are the one type that NumPy shares for bf16 too; a scalar has no last dimension to view.
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_header(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order of their data.

    Raises:
        ExportRejected: The file is cut short, its tensors overlap or leave gaps, or it holds a type that no published
            model is expected to have.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        encoded = stream.read(length) if length < min(size, LONGEST_HEADER) else b""
    tensors, position = [], 8 + length
    for name, entry in sorted(_entries(file, encoded).items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in DTYPES:
            raise ExportRejected(f"{file}: {name} is {entry.dtype}; only {', '.join(DTYPES)} can be exported")
        begin, end = (8 + length + offset for offset in entry.data_offsets)
        tensor = Stored(name, DTYPES[entry.dtype], entry.shape, file, begin)
        if begin != position or end - begin != tensor.nbytes:
            raise ExportRejected(
                f"{file}: by its header {name} has bytes {begin} to {end}, and its shape makes that {position} to "
                f"{position + tensor.nbytes}; download or export the model again"
            )
        tensors.append(tensor)
        position = end
    if position != size:
        raise ExportRejected(
            f"{file}: {size} bytes, and its header tells of {position}: cut short, or more was written behind; "
            f"download or export the model again"
        )
    return tensors


def read_headers(folder: Path) -> list[Stored]:
    """The tensors of a model: of the files that its index names, or of all safetensors files where it has none.

    Raises:
        ExportRejected: As `read_header`, or the files hold other tensors than the index says, or one of them twice.
    """
    index = folder / INDEX
    places: dict[str, str] | None = json.loads(index.read_text())["weight_map"] if index.is_file() else None
    files = sorted(folder / name for name in set(places.values())) if places else sorted(folder.glob("*.safetensors"))
    tensors = [tensor for file in files for tensor in read_header(file)]
    here = {tensor.name: tensor.file.name for tensor in tensors}
    if len(here) < len(tensors):
        names = [tensor.name for tensor in tensors if here[tensor.name] != tensor.file.name]
        raise ExportRejected(f"{folder}: {names[0]} is in several files; keep those of one model only")
    if places and places != here:
        names = sorted(name for name, _ in places.items() ^ here.items())
        raise ExportRejected(f"{index}: {names[0]} is not where it says; download or export the model again")
    return tensors


def _entries(file: Path, encoded: bytes) -> dict[str, _Entry]:
    """A header's tensors by name."""
    try:
        header = json.loads(encoded)
        return _ENTRIES.validate_python({name: entry for name, entry in header.items() if name != "__metadata__"})
    except (ValueError, AttributeError):  # no JSON, not what a header holds, or no object at all
        raise ExportRejected(f"{file}: no safetensors file; download or export the model again") from None


def header_bytes(specs: Sequence[Spec]) -> bytes:
    """The head of a file whose tensors lie in this order without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        ends = [offset, offset + spec.nbytes]
        header[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": ends}
        offset += spec.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _fill(descriptor: int, view: memoryview, offset: int, file: Path) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ExportRejected(f"{file} ends early; download or export the model again")
        done += count
