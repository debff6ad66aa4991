"""A published model by its headers, and what an export of it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from pipelines.system.manifest import text_digest
from training.int8 import groups_of, is_quantized, packed_name, scale_name, shape_name
from training.merge import ExpertShape, LoraReader
from training.weights.layout import Planned, expert_shape, plan
from training.weights.shards import Spec, Stored, read_headers


@dataclass(frozen=True)
class Checkpoint:
    """All that there is to read."""

    path: Path
    digest: str
    """Names its bytes; empty where nothing records them."""

    state: str
    """Size and time of every file that is read; see `file_state`."""

    config: dict[str, Any]
    """Its config.json."""

    experts: ExpertShape | None
    planned: Sequence[Planned]
    """Every tensor to be written, in the order of the sources."""

    @property
    def quantized(self) -> list[Planned]:
        """Those that schemes round."""
        return [one for one in self.planned if is_quantized(one.output.name, one.output.shape)]

    @property
    def tied(self) -> bool:
        """Whether engines take the embeddings for the head."""
        sections = (self.config, self.config.get("text_config", {}))
        return any(section.get("tie_word_embeddings", False) for section in sections)

    def require_unchanged(self) -> None:
        """Hold the files against what they were when they were opened.

        Raises:
            ExportRejected: One was written to since.
        """
        if file_state(self.path) != self.state:
            raise ExportRejected(
                f"{self.path} was changed while it was exported; export again when nothing writes to it"
            )


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
        ExportRejected: A file is cut short, weights are quantised already, or experts are missing or lie in no layout
            that is known.
    """
    state = file_state(path)
    config = json.loads((path / "config.json").read_text())
    experts = expert_shape(config)
    tensors = read_headers(path)
    _require_plain(path, config, tensors)
    planned = plan(tensors, experts)
    if experts:
        _require_all_experts(path, planned, experts)
    return Checkpoint(path, digest, state, config, experts, planned)


def file_state(path: Path) -> str:
    """Changes with the name, size or time of the config or a file of weights."""
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return text_digest(*(f"{file.name} {(s := file.stat()).st_size} {s.st_mtime_ns}" for file in files))


def _require_plain(path: Path, config: dict[str, Any], tensors: Sequence[Stored]) -> None:
    if not tensors:
        raise ExportRejected(f"{path}: its files hold no tensor; download the model again")
    told = any(section.get("quantization_config") for section in (config, config.get("text_config", {})))
    if told or not all(tensor.dtype.is_floating_point for tensor in tensors if tensor.name.endswith(".weight")):
        raise ExportRejected(f"{path} is quantised already; export the model that it was made of")


def _require_all_experts(path: Path, planned: Sequence[Planned], experts: ExpertShape) -> None:
    """An engine that misses an expert says nothing, and answers with whatever lies in memory."""
    found: Counter[str] = Counter(one.target.rpartition(".")[0] for one in planned if one.expert is not None)
    for module, matrices in found.items():
        if matrices != 3 * experts.experts:
            raise ExportRejected(
                f"{path}: {module} has {matrices} matrices, and config.json makes it {experts.experts} experts of 3; "
                f"download the model again"
            )


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
