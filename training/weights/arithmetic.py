"""From a matrix as it is stored to the exported ones: the update added, rounded, and turned to [out, in].

On a CPU bf16 goes through the compiled passes of `training.kernels.rounding`; on a GPU, and for other types, through
PyTorch. Both give the same bits, but for the order in which a product of low-rank factors is summed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from training.int8 import Rounded, highest, is_quantized, quantize, relative_error, scale_of
from training.kernels import rounding
from training.merge import LowRank, add_update
from training.weights.pieces import Piece

INFINITY_BITS = 0x7F80
"""Of a bf16 without its sign; NaN is above."""

BLOCK_ELEMENTS = 2**18
"""Of an update that is added at once: 1 MB in fp32, which stays in a core's cache."""

Matrix = torch.Tensor | Rounded


@dataclass(frozen=True)
class Computed:
    """What a piece becomes in one scheme."""

    matrix: Matrix
    """[out, in], all parts of the piece below each other."""

    error: float | None
    """||dequantised - merged|| / ||merged||; None where nothing is rounded."""


class Arithmetic(Protocol):
    """Computes a piece in every scheme. Several threads may use it at once."""

    def buffer(self, piece: Piece) -> torch.Tensor:
        """Where the piece is to be read into; valid until this thread asks again."""

    def compute(self, piece: Piece, stored: torch.Tensor, update: LowRank | None) -> dict[str, Computed]:
        """The piece in each scheme, by name of the model.

        Args:
            piece: What `stored` holds.
            stored: As stored, in the buffer; may be changed.
            update: Of all rows of the piece's parts.

        Raises:
            ExportRejected: The merged weight holds NaN or infinity.
        """


def arithmetic(device: str, schemes: Mapping[str, Scheme]) -> Arithmetic:
    """For a device, `cpu` or `cuda`, and for models by name."""
    return OnProcessor(schemes) if device == "cpu" else OnDevice(schemes, device)


def rounds(piece: Piece, scheme: Scheme) -> bool:
    """Whether a scheme rounds what a piece is part of."""
    output = piece.parts[0].planned.output
    return scheme.bits is not None and is_quantized(output.name, output.shape)


class OnDevice:
    """PyTorch on any device."""

    def __init__(self, schemes: Mapping[str, Scheme], device: str) -> None:
        self._schemes, self._device = schemes, device
        self._own = threading.local()

    def buffer(self, piece: Piece) -> torch.Tensor:
        """Pinned, so that the copy to the device needs no second one."""
        return torch.empty(piece.shape, dtype=piece.source.dtype, pin_memory=self._on_gpu)

    @torch.no_grad()
    def compute(self, piece: Piece, stored: torch.Tensor, update: LowRank | None) -> dict[str, Computed]:
        """See `Arithmetic`."""
        with self._stream():
            weight = stored.to(self._device, non_blocking=True)
            weight = weight.mT if piece.transposed else weight
            if update is not None:
                weight = add_update(weight, update.to(self._device).dense())
            if not torch.isfinite(weight).all():
                raise _not_finite(piece)
            return {name: self._in_scheme(piece, weight, scheme) for name, scheme in self._schemes.items()}

    def _in_scheme(self, piece: Piece, weight: torch.Tensor, scheme: Scheme) -> Computed:
        if not rounds(piece, scheme):
            return Computed(self._fetched(weight.contiguous()), None)
        rounded = quantize(weight.contiguous(), scheme)
        error = relative_error(weight, rounded)
        return Computed(Rounded(self._fetched(rounded.steps), self._fetched(rounded.scale)), error)

    def _fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the host's memory, pinned, which copies from the device need to be fast."""
        if not self._on_gpu:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)

    def _stream(self) -> AbstractContextManager[object]:
        """The thread's own: on a common one pieces would wait for each other, and cuBLAS takes 32 MiB for each pair of
        a thread and a stream.
        """
        if not self._on_gpu:
            return nullcontext()
        stream: torch.cuda.Stream | None = getattr(self._own, "stream", None)
        if stream is None:
            stream = self._own.stream = torch.cuda.Stream(self._device)
        return torch.cuda.stream(stream)

    @property
    def _on_gpu(self) -> bool:
        return self._device != "cpu"


class OnProcessor:
    """Compiled passes over bf16 bits; memory is kept by each thread and used again."""

    def __init__(self, schemes: Mapping[str, Scheme]) -> None:
        self._schemes = schemes
        self._kept = threading.local()
        self._plain = OnDevice(schemes, "cpu")

    def buffer(self, piece: Piece) -> torch.Tensor:
        """The thread's own, unless what is read is handed on."""
        if piece.source.dtype != torch.bfloat16 or self._handed_on(piece):
            return self._plain.buffer(piece)
        return self._scratch("stored", piece.shape, torch.bfloat16)

    @torch.no_grad()
    def compute(self, piece: Piece, stored: torch.Tensor, update: LowRank | None) -> dict[str, Computed]:
        """See `Arithmetic`."""
        if stored.dtype != torch.bfloat16:
            return self._plain.compute(piece, stored, update)
        if update is not None:
            self._add(stored, update, transposed=piece.transposed)
        return {name: self._in_scheme(piece, stored, scheme) for name, scheme in self._schemes.items()}

    def _handed_on(self, piece: Piece) -> bool:
        """Whether every model gets it as it is stored."""
        return not piece.transposed and not any(rounds(piece, scheme) for scheme in self._schemes.values())

    def _add(self, stored: torch.Tensor, update: LowRank, *, transposed: bool) -> None:
        """Add the update in blocks of rows, each still in the cache when it is added."""
        left, right = (update.a, update.b) if transposed else (update.b, update.a)
        each = max(1, BLOCK_ELEMENTS // stored.shape[1])
        for first in range(0, len(stored), each):
            rows = stored[first : first + each]
            dense = self._scratch("update", rows.shape, torch.float32)
            torch.mm(left[:, first : first + each].T, right, out=dense)
            rounding.add_scaled(bits(rows), dense.numpy(), np.float32(update.scale))

    def _in_scheme(self, piece: Piece, stored: torch.Tensor, scheme: Scheme) -> Computed:
        if not rounds(piece, scheme):
            _require_finite(piece, stored)
            return Computed(
                stored if self._handed_on(piece) else _copied(stored.T if piece.transposed else stored), None
            )
        return self._round_turned(piece, stored, scheme) if piece.transposed else self._round(piece, stored, scheme)

    def _round(self, piece: Piece, weight: torch.Tensor, scheme: Scheme) -> Computed:
        """[out, in] as it is; groups of inputs are rows of their own."""
        out, width = weight.shape
        grouped = weight.view(-1, scheme.group or width)
        peaks = np.empty(len(grouped), np.uint16)
        rounding.row_peaks(bits(grouped), peaks)
        scale = _scales(piece, peaks, scheme)
        steps = torch.empty(grouped.shape, dtype=torch.int8)
        error = _Error(len(grouped))
        rounding.round_rows(bits(grouped), scale.float().numpy(), _top(scheme), steps.numpy(), error.off, error.whole)
        return Computed(Rounded(steps.view(out, width), scale.view(out, -1)), error.relative())

    def _round_turned(self, piece: Piece, stored: torch.Tensor, scheme: Scheme) -> Computed:
        """[in, out]: rounded by columns, then turned, when it has half the bytes."""
        width, out = stored.shape
        size = scheme.group or width
        steps = self._scratch("steps", stored.shape, torch.int8)
        scale = torch.empty(out, width // size, dtype=torch.bfloat16)
        peaks, error = np.empty(out, np.uint16), _Error(out)
        for group in range(width // size):
            rows = slice(group * size, (group + 1) * size)
            rounding.column_peaks(bits(stored[rows]), peaks)
            of_group = _scales(piece, peaks, scheme)
            scale[:, group] = of_group
            columns = (of_group.float().numpy(), _top(scheme), steps[rows].numpy(), error.off, error.whole)
            rounding.round_columns(bits(stored[rows]), *columns)
        return Computed(Rounded(_turned(steps), scale), error.relative())

    def _scratch(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        needed = torch.Size(shape).numel()
        kept: torch.Tensor | None = getattr(self._kept, name, None)
        if kept is None or kept.numel() < needed:
            kept = torch.empty(needed, dtype=dtype)
            setattr(self._kept, name, kept)
        return kept[:needed].view(shape)


class _Error:
    """Sums of squares by row or column: of what rounding changed, and of what there was."""

    def __init__(self, n: int) -> None:
        self.off, self.whole = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def relative(self) -> float:
        off, whole = float(self.off.sum(dtype=np.float64)), float(self.whole.sum(dtype=np.float64))
        return (off / whole) ** 0.5 if whole else 0.0


def bits(tensor: torch.Tensor) -> rounding.Array:
    """The bits of a bf16 tensor as NumPy has them, shared."""
    shared: rounding.Array = tensor.view(torch.uint16).numpy()
    return shared


def _scales(piece: Piece, peaks: rounding.Array, scheme: Scheme) -> torch.Tensor:
    assert scheme.bits
    if peaks.max() >= INFINITY_BITS:
        raise _not_finite(piece)
    return scale_of(torch.from_numpy(peaks).view(torch.bfloat16), scheme.bits)


def _top(scheme: Scheme) -> np.float32:
    assert scheme.bits
    return np.float32(highest(scheme.bits))


def _turned(steps: torch.Tensor) -> torch.Tensor:
    rows, columns = steps.shape
    if rows % 8 or columns % 8:
        return _copied(steps.T)
    turned = torch.empty(columns, rows, dtype=torch.int8)
    rounding.transpose_bytes(steps.numpy().view(np.uint64), turned.numpy().view(np.uint64))
    return turned


def _copied(matrix: torch.Tensor) -> torch.Tensor:
    """Memory of its own, also where the transposed view of a single row is contiguous already."""
    return matrix.clone(memory_format=torch.contiguous_format)


def _require_finite(piece: Piece, stored: torch.Tensor) -> None:
    flat = bits(stored.view(1, -1))
    peak = np.empty(1, np.uint16)
    rounding.row_peaks(flat, peak)
    if peak[0] >= INFINITY_BITS:
        raise _not_finite(piece)


def _not_finite(piece: Piece) -> ExportRejected:
    names = " and ".join(part.planned.output.name for part in piece.parts)
    return ExportRejected(f"{piece.source.file}: {names} holds NaN or infinity once merged; download the base again")
