"""The fourth step: merge the adapter, quantise to INT8, write what vLLM loads; once, the base too, to compare with."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from pipelines.artifacts import Adapter, BaseSnapshot, QuantizedModel
from pipelines.config import Config
from pipelines.errors import ExportRejected
from pipelines.settings import Settings
from pipelines.system.manifest import manifest_digest, verify_manifest
from training.merge import LoraReader
from training.weights.quantized_base import quantized_base
from training.weights.stream import Checkpoint, finish, open_checkpoint, write_weights


def export(config: Config, folder: Path, base: BaseSnapshot, adapter: Adapter) -> QuantizedModel:
    """Write the fine-tuned model for serving, and once per machine the base in the same scheme.

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
    _require_same_base(adapter, base)
    verify_manifest(adapter.path, adapter.digest)
    checkpoint = open_checkpoint(base.path)
    lora = LoraReader(adapter.path, checkpoint.experts)
    _require_all_used(lora, checkpoint)
    scheme, max_bytes = config.export.scheme, config.export.max_shard_gb * 1e9
    # The base first: it is kept, so that a second attempt has only the rest to write.
    kept = None if scheme == "bf16" else quantized_base(checkpoint, base.digest, scheme, max_bytes, Settings().cache)
    schemes = _schemes(config)
    figures = write_weights(folder, schemes, checkpoint, lora, max_bytes)
    made_from = {"base": base.digest, "adapter": adapter.digest}
    digests = {
        name: finish(folder / name, written, checkpoint, config.images, made_from) for name, written in schemes.items()
    }
    merged = folder / "merged" if "merged" in schemes else None
    return QuantizedModel(
        path=folder / "model",
        digest=digests["model"],
        scheme=scheme,
        size_bytes=_weight_bytes(folder / "model"),
        base_digest=base.digest,
        adapter_digest=adapter.digest,
        quantized_base_path=kept,
        quantized_base_digest=manifest_digest(kept) if kept else None,
        merged_path=merged,
        merged_digest=digests.get("merged"),
        merged_bytes=_weight_bytes(merged) if merged else None,
        quantized_tensors=len(figures.errors),
        relative_error=fmean(figures.errors) if figures.errors else 0.0,
        delta_norm=fmean(figures.deltas),
    )


def _schemes(config: Config) -> dict[str, str]:
    """What is written into the step's folder, by name."""
    schemes: dict[str, str] = {"model": config.export.scheme}
    if config.export.keep_merged and config.export.scheme != "bf16":
        schemes["merged"] = "bf16"
    return schemes


def _require_same_base(adapter: Adapter, base: BaseSnapshot) -> None:
    if adapter.base_digest != base.digest:
        raise ExportRejected(
            f"the adapter was trained on base {adapter.base_digest[:12]}, and this is {base.digest[:12]}; "
            f"train on this one first"
        )


def _require_all_used(lora: LoraReader, checkpoint: Checkpoint) -> None:
    unknown = set(lora.targets) - {one.target for one in checkpoint.planned}
    if unknown:
        names = ", ".join(sorted(unknown)[:4])
        raise ExportRejected(f"{lora.folder}: updates of {names}, which the base does not have")


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
