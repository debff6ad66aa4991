"""An exported folder as a whole: what travels with the weights, and the check of what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ExportRejected
from pipelines.system.manifest import NAME
from training.int8 import scale_name
from training.weights.shards import Spec, read_headers

COMPANIONS = {".json", ".jinja", ".txt", ".model"}
"""Endings of tokenizer, processor, chat template and generation config."""

REWRITTEN = {"config.json", "model.safetensors.index.json", NAME}
NEEDED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


def copy_published(base: Path, folder: Path) -> None:
    """Copy everything but the weights as it is."""
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix in COMPANIONS and file.name not in REWRITTEN:
            shutil.copyfile(file, folder / file.name)


def copy_companions(base: Path, folder: Path, min_pixels: int, max_pixels: int) -> None:
    """Copy everything but the weights; the image processor gets the pixel limits that training had."""
    copy_published(base, folder)
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            _limit(settings.get("image_processor", settings) if name == "processor_config.json" else settings, size)
            (folder / name).write_text(json.dumps(settings, indent=2))


def verify_release(folder: Path, expected: Sequence[Spec]) -> None:
    """Read the written files again.

    Raises:
        ExportRejected: A tensor is missing, unexpected or of another type, a scale is not finite and positive, or the
            folder lacks a file that an engine needs.
    """
    stored = {tensor.name: tensor for tensor in read_headers(folder)}
    here = {(tensor.name, tensor.dtype, tensor.shape) for tensor in stored.values()}
    wanted = {(spec.name, spec.dtype, spec.shape) for spec in expected}
    if here != wanted:
        names = ", ".join(name for name, *_ in sorted(here ^ wanted, key=str)[:4])
        raise ExportRejected(f"{folder}: written and expected tensors differ: {names}; export again")
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            scale = stored[scale_name(name)].read().float()
            if not (torch.isfinite(scale).all() and (scale > 0).all()):
                raise ExportRejected(f"{folder}: {scale_name(name)} is not finite and positive; the weights are broken")
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise ExportRejected(f"{folder}: the base has no {', '.join(missing)}, and no engine serves it without")


def _limit(image_processor: dict[str, Any], size: dict[str, int]) -> None:
    # Older checkpoints carry the limits under these names, which would win over `size`.
    for old in ("min_pixels", "max_pixels"):
        image_processor.pop(old, None)
    image_processor["size"] = size
