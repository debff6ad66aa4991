"""Some exported matrices computed once more, from the sources, in float64, by the definitions alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from training.int8 import QUANTIZED, SMALLEST, highest, packed_name, scale_name, unpack
from training.weights.checkpoint import Checkpoint, Update
from training.weights.layout import Planned
from training.weights.shards import Stored, read_headers

SAMPLES = 24
"""Matrices that are computed again."""

ROWS = 256
"""Of each, spread over it."""

TIES = 1e-3
"""Share of steps that may be one off: where float64 and fp32 fall on two sides of a half."""

MERGED_TIES = 1e-2
"""The same of merged weights in 16 bits, whose sums have an error of their own when the update is large."""

CANCELLED = 1e-6
"""Of the largest weight: what fp32 leaves of a sum that is nearly zero."""


def prove(folder: Path, checkpoint: Checkpoint, update: Update | None, scheme: Scheme) -> int:
    """Compute a sample of attention, MLP and experts again, and compare it with what was written.

    Args:
        folder: The exported weights.
        checkpoint: What they were made of.
        update: What was merged.
        scheme: They were rounded in, by our own stream.

    Returns:
        How many matrices were compared.

    Raises:
        ExportRejected: One is not what it should be.
    """
    stored = {tensor.name: tensor for tensor in read_headers(folder)}
    chosen = _spread([one for one in checkpoint.planned if QUANTIZED.fullmatch(one.output.name)])
    for one in chosen:
        rows = torch.arange(0, one.output.shape[0], -(-one.output.shape[0] // ROWS))
        wanted = _merged(one, update, rows)
        if scheme.bits:
            _prove_rounded(one.output.name, wanted, stored, rows, scheme)
        else:
            _prove_merged(one.output.name, wanted, stored[one.output.name].read()[rows])
    return len(chosen)


def _spread(planned: Sequence[Planned]) -> list[Planned]:
    """As far apart as can be: the first, the last, and others of many layers and kinds between them."""
    n = min(SAMPLES, len(planned))
    return [planned[i * (len(planned) - 1) // max(n - 1, 1)] for i in range(n)]


def _prove_rounded(
    name: str, wanted: torch.Tensor, stored: dict[str, Stored], rows: torch.Tensor, scheme: Scheme
) -> None:
    scale = stored[scale_name(name)].read()[rows].double()
    steps = _steps(stored, name, scheme)[rows].double().view(len(rows), scale.shape[1], -1)
    grouped = wanted.view(steps.shape)
    top = highest(scheme.bits or 8)
    exact = (grouped.abs().amax(2) / (top + 0.5)).clamp_min(SMALLEST)
    if ((scale - exact).abs() > exact * 2**-7).any():
        raise ExportRejected(f"{name}: a scale is not its largest weight over {top + 0.5}; export again")
    off = (steps - (grouped / scale.unsqueeze(2)).round().clamp(-top - 1, top)).abs()
    if off.max() > 1 or (off > 0).double().mean() > TIES:
        raise ExportRejected(
            f"{name}: {int((off > 0).sum())} of {off.numel()} weights are not the rounding of base and adapter, by up "
            f"to {int(off.max())} steps; export again, and if it repeats, report it"
        )


def _prove_merged(name: str, wanted: torch.Tensor, written: torch.Tensor) -> None:
    eps = torch.finfo(written.dtype).eps
    noise = CANCELLED * float(wanted.abs().max())
    close = torch.isclose(written.double(), wanted, rtol=2 * eps, atol=noise)
    off = (written.double() != wanted).double().mean()
    if not close.all() or (written.dtype != torch.float32 and off > MERGED_TIES):
        raise ExportRejected(
            f"{name}: {float(off):.1%} of the weights are not the sum of base and adapter; export again, and if it "
            f"repeats, report it"
        )


def _merged(one: Planned, update: Update | None, rows: torch.Tensor) -> torch.Tensor:
    """Base and adapter in float64, rounded to the base's type as a merge is: some rows."""
    weight = one.source.read(one.expert if one.from_stack else None)
    if one.from_stack:
        weight = (weight.mT if one.transposed else weight)[one.rows]
    weight = weight[rows]
    low_rank = update.lora.update(one.target, one.expert, one.rows) if update else None
    if low_rank is None:
        return weight.double()
    change = low_rank.scale * (low_rank.b[:, rows].double().T @ low_rank.a.double())
    return (weight.double() + change).to(weight.dtype).double()


def _steps(stored: dict[str, Stored], name: str, scheme: Scheme) -> torch.Tensor:
    if scheme.int8_activations:
        return stored[name].read()
    return unpack(stored[packed_name(name)].read(), scheme.bits or 8)
