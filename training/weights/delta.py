"""How large an adapter's update is beside the weights that it changes, told before they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from pipelines.errors import ExportRejected
from training.merge import LoraReader
from training.weights.checkpoint import Checkpoint
from training.weights.layout import Planned

LIMITS = (1e-6, 10.0)
"""Of ||update|| / ||weight||. Below, bf16 rounds nearly all of it away; above, the base is noise beside what was
learned, which is a diverged training or a wrong alpha. Real models stay far below 1; the tiny ones pass it."""

SAMPLES, SAMPLE_BYTES = 8, 16384
"""Read of each weight, spread over it: its root mean square is known to a percent or so."""


def relative_norms(checkpoint: Checkpoint, lora: LoraReader) -> dict[str, float]:
    """||update|| / ||weight|| of each target, the update's exactly, the weight's by a sample.

    Raises:
        ExportRejected: One is out of all range.
    """
    planned: defaultdict[str, list[Planned]] = defaultdict(list)
    for one in checkpoint.planned:
        planned[one.target].append(one)
    norms = {name: norm / _norm(planned[name]) for name, norm in lora.norms.items()}
    low, high = LIMITS
    for name, norm in norms.items():
        if not low <= norm <= high:
            raise ExportRejected(
                f"{lora.folder}: the update of {name} is {norm:.2g} of the weight's norm, and {low:g} to {high:g} is "
                f"sane; check lora.alpha and train.learning_rate, and train again"
            )
    return norms


def _norm(planned: Sequence[Planned]) -> float:
    elements = sum(torch.Size(one.output.shape).numel() for one in planned)
    sources = list({one.source.name: one.source for one in planned}.values())
    squares = []
    for i in range(SAMPLES):
        source = sources[i * len(sources) // SAMPLES]
        size = min(SAMPLE_BYTES, source.nbytes)
        buffer = bytearray(size)
        begin = (source.nbytes - size) * i // SAMPLES
        source.read_bytes(memoryview(buffer), begin - begin % source.dtype.itemsize)
        squares.append(torch.frombuffer(buffer, dtype=source.dtype).float().square().mean())
    # A weight of zeros has any update out of range.
    return max(float(torch.stack(squares).mean() * elements) ** 0.5, 1e-30)
