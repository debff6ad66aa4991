"""A model from a published checkpoint, tensor by tensor: read, merge, quantise, write. The model is never built.

A folder is written under a temporary name and gets its own last, after its manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Images
from pipelines.errors import ExportRejected
from pipelines.system.durable import commit
from pipelines.system.machine import require_disk
from pipelines.system.manifest import write_manifest
from training.int8 import is_quantized, quantization_config, quantize, relative_error, scale_name
from training.merge import ExpertShape, LoraReader, add_update
from training.weights.layout import Planned, expert_shape, plan
from training.weights.released import copy_companions, copy_published, verify_release
from training.weights.shards import ModelWriter, Spec, Stored, read_headers

MARGIN = 1.02
"""Of the free disk: headers, tokenizer, file system."""


@dataclass(frozen=True)
class Checkpoint:
    """A published model by its headers: all that there is to read."""

    path: Path
    config: dict[str, Any]
    """Its config.json."""

    experts: ExpertShape | None
    planned: Sequence[Planned]
    """Every tensor to be written, in the order of the sources."""


@dataclass
class Figures:
    """What is measured while tensors pass by."""

    errors: list[float] = field(default_factory=list)
    """||int8 - merged|| / ||merged|| of each quantised tensor."""

    deltas: list[float] = field(default_factory=list)
    """||update|| / ||weight|| of each adapted tensor."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers.

    Raises:
        ExportRejected: A file is cut short, or experts lie in no layout that is known.
    """
    config = json.loads((path / "config.json").read_text())
    experts = expert_shape(config)
    return Checkpoint(path, config, experts, plan(read_headers(path), experts))


def expected_tensors(planned: Sequence[Planned], scheme: str) -> list[list[Spec]]:
    """What an exported model holds, in order; a weight and its scales form a group."""
    return [_outputs(one.output, scheme) for one in planned]


def _outputs(spec: Spec, scheme: str) -> list[Spec]:
    if scheme == "bf16" or not is_quantized(spec.name, spec.shape):
        return [spec]
    scales = Spec(scale_name(spec.name), torch.bfloat16, (spec.shape[0], 1))
    return [Spec(spec.name, torch.int8, spec.shape), scales]


def write_weights(
    folder: Path, schemes: Mapping[str, str], checkpoint: Checkpoint, lora: LoraReader | None, max_bytes: float
) -> Figures:
    """One pass over the checkpoint writes the weights of every model into its temporary folder.

    Args:
        folder: Where the models will lie.
        schemes: By name of the model's folder. What is there under such a name is removed.
        checkpoint: What is read.
        lora: What is merged into it; None for the base itself.
        max_bytes: Size of one file.

    Raises:
        MachineUnfit: The disk is too small.
    """
    with ExitStack() as stack:
        writers = {}
        for name, scheme in schemes.items():
            for leftover in (folder / name, _partial(folder, name)):
                shutil.rmtree(leftover, ignore_errors=True)
            _partial(folder, name).mkdir(parents=True)
            tensors = expected_tensors(checkpoint.planned, scheme)
            writers[scheme] = ModelWriter(_partial(folder, name), tensors, max_bytes)
        require_disk(folder, int(MARGIN * sum(writer.nbytes for writer in writers.values())), "the export")
        for writer in writers.values():
            stack.enter_context(writer)
        return stream(checkpoint.planned, lora, writers)


@torch.no_grad()
def stream(planned: Sequence[Planned], lora: LoraReader | None, writers: Mapping[str, ModelWriter]) -> Figures:
    """Merge each tensor and hand it to the writers.

    Args:
        planned: All tensors, in order.
        lora: The adapter, if there is one.
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


def _merge(one: Planned, read: Any, lora: LoraReader | None, figures: Figures) -> torch.Tensor:
    weight: torch.Tensor = read(one.source, one.expert if one.from_stack else None)
    if one.from_stack:
        weight = (weight.T if one.transposed else weight)[one.rows]
    update = lora.update(one.target, one.expert, one.rows) if lora else None
    if update is None:
        return weight
    if update.shape != weight.shape:
        raise ExportRejected(f"{one.target}: an update of {list(update.shape)} for a weight of {list(weight.shape)}")
    norm = float(weight.float().norm())
    figures.deltas.append(float(update.norm()) / norm if norm else 0.0)
    return add_update(weight, update)


def finish(
    folder: Path, scheme: str, checkpoint: Checkpoint, images: Images | None, made_from: Mapping[str, str]
) -> str:
    """Add what goes with the weights, check everything on disk, write the manifest and give the folder its name.

    Args:
        folder: The model's final folder; its weights are in the temporary one.
        scheme: Of the weights.
        checkpoint: What they were read from.
        images: Pixel limits for the image processor; None leaves those that were published.
        made_from: Digests, for the manifest.

    Returns:
        The manifest's digest.

    Raises:
        ExportRejected: What was written is not what should have been.
    """
    partial = _partial(folder.parent, folder.name)
    quantization = {"quantization_config": quantization_config()} if scheme == "int8_w8a8" else {}
    (partial / "config.json").write_text(json.dumps({**checkpoint.config, **quantization}, indent=2))
    if images is None:
        copy_published(checkpoint.path, partial)
    else:
        copy_companions(checkpoint.path, partial, images.min_pixels, images.max_pixels)
    verify_release(partial, [spec for group in expected_tensors(checkpoint.planned, scheme) for spec in group])
    digest = write_manifest(partial, scheme=scheme, made_from=made_from)
    commit(partial, folder)
    return digest


def _partial(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"
