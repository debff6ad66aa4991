"""Some exported matrices computed once more, from the sources, in float64, by the definitions alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from training.int8 import SMALLEST, highest, packed_name, scale_name, unpack
from training.weights.checkpoint import Checkpoint, Update
from training.weights.layout import Planned
from training.weights.shards import Stored, read_headers

SAMPLES = 24
"""Matrices that are computed again."""

ROWS = 256
"""Of each, spread over it."""

TIES = 1e-3
"""Share of steps that may be one off: where float64 and fp32 fall on two sides of a half."""


def prove(folder: Path, checkpoint: Checkpoint, update: Update | None, scheme: Scheme) -> int:
    """Compute a sample of the rounded matrices again, and compare it with what was written.

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
    chosen = _spread(checkpoint.quantized)
    for one in chosen:
        _prove_one(one, stored, update, scheme)
    return len(chosen)


def _spread(planned: Sequence[Planned]) -> list[Planned]:
    """As far apart as can be: the first, the last, and others of many layers and kinds between them."""
    n = min(SAMPLES, len(planned))
    return [planned[i * (len(planned) - 1) // max(n - 1, 1)] for i in range(n)]


def _prove_one(one: Planned, stored: dict[str, Stored], update: Update | None, scheme: Scheme) -> None:
    name = one.output.name
    rows = torch.arange(0, one.output.shape[0], -(-one.output.shape[0] // ROWS))
    wanted = _merged(one, update, rows)
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
