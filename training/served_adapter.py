"""An adapter as vLLM takes it beside its base: PEFT's layout, experts fused, in bf16; and the words to serve it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ExportRejected
from pipelines.system.durable import commit, partial_of, write_text
from pipelines.system.machine import require_disk
from pipelines.system.manifest import write_manifest
from training.merge import LoraReader
from training.peft_layout import CONFIG, WEIGHTS
from training.weights.shards import Spec, Stored, as_bytes, header_bytes, read_header
from training.weights.writer import full_disk_named

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank` that vLLM has kernels for."""


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter in a folder of its own."""

    path: Path
    base: Path
    rank: int
    tensors: int
    size_bytes: int
    updates_experts: bool
    """In stacks, which vLLM must be told."""

    updates_vision: bool
    """The merger, for which vLLM makes room only when asked."""

    @property
    def name(self) -> str:
        """By which requests ask for it."""
        return self.path.name

    @property
    def request(self) -> dict[str, object]:
        """Body of `POST /v1/load_lora_adapter`."""
        stacks = {"is_3d_lora_weight": True} if self.updates_experts else {}
        return {"lora_name": self.name, "lora_path": str(self.path), **stacks}

    @property
    def flags(self) -> list[str]:
        """Arguments of `vllm serve` behind the base's folder."""
        module = {"name": self.name, "path": str(self.path), "is_3d_lora_weight": self.updates_experts}
        flags = ["--enable-lora", "--max-lora-rank", str(max_rank(self.rank)), "--lora-modules", json.dumps(module)]
        return [*flags, "--enable-tower-connector-lora"] if self.updates_vision else flags

    @property
    def command(self) -> str:
        """The line that serves it beside its base."""
        return shlex.join(["vllm", "serve", str(self.base), *self.flags])


def export_adapter(lora: LoraReader, base: Path, out: Path, made_from: Mapping[str, str]) -> ServedAdapter:
    """Write an adapter for vLLM; its manifest says what an engine must be told to serve it.

    Args:
        lora: The adapter, checked on opening.
        base: That it is served on.
        out: Whole or not there afterwards.
        made_from: Digests, for the manifest.

    Raises:
        ExportRejected: vLLM cannot serve it.
        MachineUnfit: The disk is too small.
    """
    _require_servable(lora)
    tensors = read_header(lora.folder / WEIGHTS)
    partial = partial_of(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    require_disk(partial, sum(_in_bf16(tensor).nbytes for tensor in tensors), "the adapter")
    with full_disk_named(out):
        _write_weights(tensors, partial / WEIGHTS)
        write_text(partial / CONFIG, json.dumps(_config(lora.folder), indent=2, sort_keys=True))
        facts = {"max_rank": max_rank(lora.rank), "experts": bool(_stacks(lora)), "vision": _updates_vision(lora)}
        write_manifest(partial, made_from=dict(made_from), dtype="bf16", lora=facts)
    size = (partial / WEIGHTS).stat().st_size
    commit(partial, out)
    return ServedAdapter(
        path=out,
        base=base,
        rank=lora.rank,
        tensors=len(tensors),
        size_bytes=size,
        updates_experts=bool(_stacks(lora)),
        updates_vision=_updates_vision(lora),
    )


def max_rank(rank: int) -> int:
    """The least value of `--max-lora-rank` that serves a rank."""
    return next(size for size in MAX_RANKS if size >= rank)


def _require_servable(lora: LoraReader) -> None:
    for module, leaves in _stacks(lora).items():
        if len(leaves) != 2:
            raise ExportRejected(
                f"{lora.folder}: updates {leaves[0]} of {module} and not the other stack, and vLLM takes both or none; "
                f"merge it instead: leave out --adapter-only"
            )
    if lora.rank > MAX_RANKS[-1]:
        raise ExportRejected(
            f"{lora.folder}: rank {lora.rank}, and vLLM serves up to {MAX_RANKS[-1]}; leave out --adapter-only"
        )


def _stacks(lora: LoraReader) -> dict[str, list[str]]:
    """The stacks that are updated, by experts module."""
    found: dict[str, list[str]] = {}
    for target in sorted(lora.targets):
        module, _, leaf = target.rpartition(".")
        if module.endswith(".experts"):
            found.setdefault(module, []).append(leaf)
    return found


def _updates_vision(lora: LoraReader) -> bool:
    return any(".visual." in name for name in lora.targets)


def _config(folder: Path) -> dict[str, Any]:
    """As it was; the path of the base on the machine that trained is nobody else's business."""
    options: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return {**options, "base_model_name_or_path": None, "inference_mode": True}


def _write_weights(tensors: list[Stored], file: Path) -> None:
    """Tensor by tensor: an adapter of experts has gigabytes."""
    with file.open("wb") as stream:
        stream.write(header_bytes([_in_bf16(tensor) for tensor in tensors]))
        for tensor in tensors:
            stream.write(as_bytes(tensor.read().to(torch.bfloat16)))
        stream.flush()
        os.fsync(stream.fileno())


def _in_bf16(tensor: Stored) -> Spec:
    return Spec(tensor.name, torch.bfloat16, tensor.shape)
