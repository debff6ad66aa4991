"""The fourth step: merge the adapter, quantise to INT8, write what vLLM loads. Streams: the model is never built."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pipelines.artifacts import Adapter, BaseSnapshot, QuantizedModel
from pipelines.config import Config, Images
from pipelines.errors import ExportRejected
from pipelines.system.durable import commit
from pipelines.system.machine import require_disk
from pipelines.system.manifest import verify_manifest, write_manifest
from training.int8 import is_quantized, quantization_config, quantize, relative_error, scale_name
from training.layout import Planned, expert_shape, plan
from training.merge import LoraReader, add_update
from training.released import copy_companions, verify_release
from training.shards import ModelWriter, Spec, Stored, read_headers

log = logging.getLogger(__name__)

MARGIN = 1.02
"""Of the free disk: headers, tokenizer, file system."""


@dataclass
class Figures:
    """What is measured while tensors pass by."""

    errors: list[float] = field(default_factory=list)
    """||int8 - merged|| / ||merged|| of each quantised tensor."""

    deltas: list[float] = field(default_factory=list)
    """||update|| / ||weight|| of each adapted tensor."""


def export(config: Config, folder: Path, base: BaseSnapshot, adapter: Adapter) -> QuantizedModel:
    """Write the fine-tuned model for serving.

    Args:
        config: Sections `export` and `images` are used.
        folder: The step's folder. Gets `model/` and, where asked for, `merged/`.
        base: The published checkpoint.
        adapter: Trained on exactly this base.

    Raises:
        ExportRejected: The adapter belongs to another base, cannot be merged or is broken, or what was written is not
            what should have been.
        MachineUnfit: The disk is too small.
    """
    if adapter.base_digest != base.digest:
        raise ExportRejected(
            f"the adapter was trained on base {adapter.base_digest[:12]}, and this is {base.digest[:12]}; "
            f"train on this one first"
        )
    verify_manifest(adapter.path, adapter.digest)
    model_config = json.loads((base.path / "config.json").read_text())
    shape = expert_shape(model_config)
    lora = LoraReader(adapter.path, shape)
    planned = plan(read_headers(base.path), shape)
    _require_all_used(lora, planned)
    schemes: dict[str, str] = {"model": config.export.scheme}
    if config.export.keep_merged and config.export.scheme != "bf16":
        schemes["merged"] = "bf16"
    figures = _write(folder, schemes, planned, lora, config.export.max_shard_gb * 1e9)
    facts = {"base": base.digest, "adapter": adapter.digest}
    digests = {
        name: _finish(folder, name, scheme, base.path, model_config, config.images, planned, facts)
        for name, scheme in schemes.items()
    }
    merged = "merged" if "merged" in schemes else None
    return QuantizedModel(
        path=folder / "model",
        digest=digests["model"],
        scheme=config.export.scheme,
        size_bytes=_weight_bytes(folder / "model"),
        base_digest=base.digest,
        adapter_digest=adapter.digest,
        merged_path=folder / merged if merged else None,
        merged_digest=digests[merged] if merged else None,
        merged_bytes=_weight_bytes(folder / merged) if merged else None,
        quantized_tensors=len(figures.errors),
        relative_error=fmean(figures.errors) if figures.errors else 0.0,
        delta_norm=fmean(figures.deltas),
    )


def expected_tensors(planned: Sequence[Planned], scheme: str) -> list[list[Spec]]:
    """What an exported model holds, in order; a weight and its scales form a group."""
    return [_outputs(one.output, scheme) for one in planned]


def _outputs(spec: Spec, scheme: str) -> list[Spec]:
    if scheme == "bf16" or not is_quantized(spec.name, spec.shape):
        return [spec]
    scales = Spec(scale_name(spec.name), torch.bfloat16, (spec.shape[0], 1))
    return [Spec(spec.name, torch.int8, spec.shape), scales]


def _require_all_used(lora: LoraReader, planned: Sequence[Planned]) -> None:
    unknown = set(lora.targets) - {one.target for one in planned}
    if unknown:
        names = ", ".join(sorted(unknown)[:4])
        raise ExportRejected(f"{lora.folder}: updates of {names}, which the base does not have")


def _write(
    folder: Path, schemes: dict[str, str], planned: Sequence[Planned], lora: LoraReader, max_bytes: float
) -> Figures:
    """One pass over the base writes every output into its temporary folder."""
    with ExitStack() as stack:
        writers = {}
        for name, scheme in schemes.items():
            for leftover in (folder / name, _partial(folder, name)):
                shutil.rmtree(leftover, ignore_errors=True)
            _partial(folder, name).mkdir(parents=True)
            writers[scheme] = ModelWriter(_partial(folder, name), expected_tensors(planned, scheme), max_bytes)
        require_disk(folder, int(MARGIN * sum(writer.nbytes for writer in writers.values())), "the export")
        for writer in writers.values():
            stack.enter_context(writer)
        return stream(planned, lora, writers)


@torch.no_grad()
def stream(planned: Sequence[Planned], lora: LoraReader, writers: dict[str, ModelWriter]) -> Figures:
    """Merge each tensor and hand it to the writers.

    Args:
        planned: All tensors, in order.
        lora: The adapter.
        writers: By scheme.
    """
    figures = Figures()
    read = lru_cache(maxsize=1)(Stored.read)  # gate and up of an expert are stored together
    for one in planned:
        weight = _merge(one, read, lora, figures)
        for scheme, writer in writers.items():
            outputs = _outputs(one.output, scheme)
            if len(outputs) == 1:
                writer.write(one.output.name, weight)
                continue
            steps, scale = quantize(weight)
            figures.errors.append(relative_error(weight, steps, scale))
            for spec, tensor in zip(outputs, (steps, scale), strict=True):
                writer.write(spec.name, tensor)
    return figures


def _merge(one: Planned, read: Any, lora: LoraReader, figures: Figures) -> torch.Tensor:
    weight: torch.Tensor = read(one.source, one.expert if one.from_stack else None)
    if one.from_stack:
        weight = (weight.T if one.transposed else weight)[one.rows]
    update = lora.update(one.target, one.expert, one.rows)
    if update is None:
        return weight
    if update.shape != weight.shape:
        raise ExportRejected(f"{one.target}: an update of {list(update.shape)} for a weight of {list(weight.shape)}")
    norm = float(weight.float().norm())
    figures.deltas.append(float(update.norm()) / norm if norm else 0.0)
    return add_update(weight, update)


def _finish(
    folder: Path,
    name: str,
    scheme: str,
    base: Path,
    model_config: dict[str, Any],
    images: Images,
    planned: Sequence[Planned],
    facts: dict[str, str],
) -> str:
    """Add what goes with the weights, check everything on disk, write the manifest and give the folder its name."""
    partial = _partial(folder, name)
    quantization = {"quantization_config": quantization_config()} if scheme == "int8_w8a8" else {}
    (partial / "config.json").write_text(json.dumps({**model_config, **quantization}, indent=2))
    copy_companions(base, partial, images.min_pixels, images.max_pixels)
    verify_release(partial, [spec for group in expected_tensors(planned, scheme) for spec in group])
    digest = write_manifest(partial, scheme=scheme, made_from=facts)
    commit(partial, folder / name)
    return digest


def _partial(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
