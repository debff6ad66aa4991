"""What the export needs of the host, and of its disk: nothing of it depends on the card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.budget.base import Base
from pipelines.budget.demand import GIB
from pipelines.budget.serving import BF16_BYTES, quantized_bytes
from pipelines.budget.shape import ModelShape
from pipelines.config import Config
from pipelines.schemes import SCHEMES, Scheme

STREAM_BYTES = 1 * GIB
"""Resident memory of the stream, for a model of any size: a few tensors, PyTorch, its libraries."""

CALIBRATED_MODEL, CALIBRATED_LAYER = 1.2, 1.5
"""Of the model in bf16, and of what is known about the inputs of one layer's matrices: the factors by which
training/calibrated/compress.py refuses to begin."""

GROUP_SIZES = (128, 64, 32)
"""That a config may ask for."""


@dataclass(frozen=True)
class HostNeed:
    """Of one export."""

    memory_bytes: float
    why: str
    files: dict[str, float]
    """Bytes of weights that it writes, by what they are; the base is there already."""

    @property
    def disk_bytes(self) -> float:
        """All of them."""
        return sum(self.files.values())


def host_need(config: Config, base: Base) -> HostNeed:
    """Memory and disk of `export`.

    Args:
        config: Section `export` is used.
        base: What is merged into.
    """
    files = dict(_files(config, base))
    if config.export.stored.calibrated:
        whole = CALIBRATED_MODEL * file_bytes(base, SCHEMES["bf16"]) + CALIBRATED_LAYER * _covariances(base.shape)
        return HostNeed(STREAM_BYTES + whole, "calibration holds the whole model in bf16", files)
    return HostNeed(STREAM_BYTES, "tensors pass one by one", files)


def group_objection(shape: ModelShape, scheme: Scheme) -> str | None:
    """Why rows of this shape cannot be cut into the scheme's groups; None if they can."""
    widths = {width for width, _ in (*shape.projections, *shape.stacks)}
    odd = sorted(width for width in widths if scheme.group and width % scheme.group)
    if not odd:
        return None
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    way = f"set export.group_size to {fitting[0]}" if fitting else "set export.scheme to int8_w8a8 or bf16"
    return f"rows of {odd[0]:,} inputs cannot be cut into groups of {scheme.group}, as {scheme.name} does; {way}"


def file_bytes(base: Base, scheme: Scheme) -> float:
    """Weights on disk, headers left out."""
    plain = base.parameters.total - base.parameters.quantized
    return quantized_bytes(base, scheme, BF16_BYTES) + BF16_BYTES * plain


def _covariances(shape: ModelShape) -> int:
    """Bytes of a square fp32 matrix for the inputs of each matrix of a layer; gate and up have one each."""
    experts = max(shape.experts, 1) * (2 * shape.hidden**2 + shape.width**2)
    return 4 * (sum(width**2 for width, _ in shape.projections) + experts)


def _files(config: Config, base: Base) -> Iterator[tuple[str, float]]:
    scheme, merged = config.export.stored, file_bytes(base, SCHEMES["bf16"])
    yield f"the model in {scheme.name}", file_bytes(base, scheme)
    if scheme.bits is None:
        return
    yield f"the base in {scheme.rounded.name}, once a machine", file_bytes(base, scheme.rounded)
    if config.export.keep_merged:
        yield "the merged model in bf16", merged
    elif scheme.calibrated:
        yield "the merged model in bf16, until it is calibrated", merged
