"""An exported folder as a whole: what travels with the weights, the check of what was written, the manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Images
from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from pipelines.system.durable import commit, partial_of
from pipelines.system.manifest import NAME, write_manifest
from training.int8 import quantization_config, scale_name
from training.weights.checkpoint import Checkpoint, expected_tensors
from training.weights.shards import INDEX, NAMES, Spec, Stored, read_header, read_headers
from training.weights.writer import Written

COMPANIONS = {".json", ".jinja", ".txt", ".model"}
"""Endings of tokenizer, processor, chat template and generation config."""

REWRITTEN = {"config.json", INDEX, NAME}
NEEDED = ("config.json", "tokenizer_config.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""One is needed where the model sees images: older checkpoints have the first, transformers 5 saves the second."""


@dataclass(frozen=True)
class Release:
    """What makes weights a model."""

    checkpoint: Checkpoint
    """They were read from."""

    scheme: Scheme
    images: Images | None
    """Pixel limits for the image processor; None leaves those that were published."""

    made_from: Mapping[str, str]
    """Digests, for the manifest."""

    def complete(self, folder: Path) -> None:
        """Add what goes with the weights, and check everything on disk.

        Raises:
            ExportRejected: What was written is not what should have been.
        """
        quantization = {} if self.scheme.bits is None else {"quantization_config": quantization_config(self.scheme)}
        config = {**served_config(self.checkpoint.config), **quantization}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        if self.images is None:
            copy_published(self.checkpoint.path, folder)
        else:
            copy_companions(self.checkpoint.path, folder, self.images.min_pixels, self.images.max_pixels)
        expected = expected_tensors(self.checkpoint.planned, self.scheme)
        verify_release(folder, [spec for group in expected for spec in group])

    def seal(self, folder: Path, files: Sequence[Written]) -> str:
        """Write the manifest and give the folder its name.

        Args:
            folder: The model's final folder; what is complete lies in the unfinished one.
            files: Of the weights.

        Returns:
            The manifest's digest.
        """
        partial = partial_of(folder)
        digest = write_manifest(
            partial,
            about={one.file: self._about(partial / one.file, one) for one in files},
            scheme=self.scheme.name,
            group_size=self.scheme.group,
            made_from=self.made_from,
            versions={name: version(name) for name in ("vlmops", "torch", "safetensors")},
        )
        shutil.rmtree(folder, ignore_errors=True)
        commit(partial, folder)
        return digest

    def _about(self, file: Path, written: Written) -> dict[str, object]:
        tensors = Counter(NAMES[tensor.dtype] for tensor in read_header(file))
        return {"sha256": written.sha256, "dtypes": dict(sorted(tensors.items())), "scheme": self.scheme.name}


def served_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as vLLM reads it, also where transformers 5 has saved it, which renames one field and drops one."""
    text = dict(config.get("text_config", {}))
    if config.get("model_type") != "qwen3_vl_moe" or not text:
        return dict(config)
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    text.setdefault("norm_topk_prob", True)  # transformers always does it for this architecture
    return {**config, "text_config": text}


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
        if name.endswith(scale_name("")):
            _require_scales(folder, tensor)
    if missing := _missing(folder):
        raise ExportRejected(f"{folder}: the base has no {', '.join(missing)}, and no engine serves it without")


def _missing(folder: Path) -> list[str]:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    sees = not missing and "vision_config" in json.loads((folder / "config.json").read_text())
    if sees and not any((folder / name).is_file() for name in PROCESSORS):
        missing.append(" or ".join(PROCESSORS))
    return missing


def _require_scales(folder: Path, tensor: Stored) -> None:
    scale = tensor.read().float()
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise ExportRejected(f"{folder}: {tensor.name} is not finite and positive; the weights are broken")


def _limit(image_processor: dict[str, Any], size: dict[str, int]) -> None:
    # Older checkpoints carry the limits under these names, which would win over `size`.
    for old in ("min_pixels", "max_pixels"):
        image_processor.pop(old, None)
    image_processor["size"] = size
