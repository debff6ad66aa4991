"""A published model by its headers, and what an export of it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.schemes import Scheme
from training.int8 import groups_of, is_quantized, packed_name, scale_name, shape_name
from training.merge import ExpertShape, LoraReader
from training.weights.layout import Planned, expert_shape, plan
from training.weights.shards import Spec, read_headers


@dataclass(frozen=True)
class Checkpoint:
    """All that there is to read."""

    path: Path
    digest: str
    """Names its bytes."""

    config: dict[str, Any]
    """Its config.json."""

    experts: ExpertShape | None
    planned: Sequence[Planned]
    """Every tensor to be written, in the order of the sources."""

    @property
    def quantized(self) -> list[Planned]:
        """Those that schemes round."""
        return [one for one in self.planned if is_quantized(one.output.name, one.output.shape)]


@dataclass(frozen=True)
class Update:
    """What is merged into a checkpoint."""

    lora: LoraReader
    digest: str
    """Names its bytes."""

    norms: Mapping[str, float]
    """||update|| / ||weight|| of each target."""


def open_checkpoint(path: Path, digest: str) -> Checkpoint:
    """Read the headers.

    Raises:
        ExportRejected: A file is cut short, or experts lie in no layout that is known.
    """
    config = json.loads((path / "config.json").read_text())
    experts = expert_shape(config)
    return Checkpoint(path, digest, config, experts, plan(read_headers(path), experts))


def expected_tensors(planned: Sequence[Planned], scheme: Scheme) -> list[list[Spec]]:
    """What an exported model holds, in order; what becomes of one weight is a group.

    Raises:
        ExportRejected: A layer is unknown, or its rows do not divide into the scheme's groups.
    """
    return [tensors_of(one.output, scheme) for one in planned]


def tensors_of(spec: Spec, scheme: Scheme) -> list[Spec]:
    """What one weight is stored as: itself, or its steps and scales."""
    if scheme.bits is None or not is_quantized(spec.name, spec.shape):
        return [spec]
    out, width = spec.shape
    scales = Spec(scale_name(spec.name), torch.bfloat16, (out, groups_of(spec.name, width, scheme)))
    if scheme.int8_activations:
        return [Spec(spec.name, torch.int8, spec.shape), scales]
    packed = Spec(packed_name(spec.name), torch.int32, (out, width * scheme.bits // 32))
    return [packed, scales, Spec(shape_name(spec.name), torch.int64, (2,))]
