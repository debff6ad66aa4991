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

    def read_bytes(self, into: memoryview, first: int = 0) -> None:
        """Fill a buffer with the tensor's bytes from `first` on.

        Raises:
            ExportRejected: The file ends before.
        """
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            _fill(descriptor, into, self.offset + first, self.file)
        finally:
            os.close(descriptor)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, of any type."""
    # Single bytes are the one type that NumPy shares for bf16 too; a scalar has no last dimension to view.
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_header(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order of their data.

    Raises:
        ExportRejected: The file is cut short, or holds a type that is not expected in a published model.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER
        encoded = stream.read(length) if length < min(size, LONGEST_HEADER) else b""
    try:
        header = json.loads(encoded)
    except ValueError:
        raise ExportRejected(f"{file}: no safetensors file; download or export the model again") from None
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ExportRejected(f"{file}: {name} is {entry['dtype']}; only {', '.join(DTYPES)} can be exported")
        begin, end = entry["data_offsets"]
        tensor = Stored(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), file, 8 + length + begin)
        if end - begin != tensor.nbytes or tensor.offset + tensor.nbytes > size:
            raise ExportRejected(f"{file}: {name} is cut short; download or export the model again")
        tensors.append(tensor)
    return tensors


def read_headers(folder: Path) -> list[Stored]:
    """The tensors of all safetensors files of a folder."""
    return [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_header(file)]


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
