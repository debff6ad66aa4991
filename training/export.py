"""The fourth step: merge the adapter, round, prove, write what vLLM loads; once, the base too, to compare with.

Or, where versions are adapters, write the adapter alone: what it is served on is that same base.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from statistics import fmean

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.errors import ExportRejected
from pipelines.exported import QuantizedModel
from pipelines.parity import Parity, require_parity
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.system.durable import partial_of
from pipelines.system.manifest import manifest_digest, verify_manifest
from training.export_adapter import ADAPTER, Beside
from training.provenance import open_update
from training.sources.safety import refuse_code, refuse_unsafe
from training.weights.checkpoint import Checkpoint, Update, open_checkpoint
from training.weights.making import Made, make
from training.weights.quantized_base import quantized_base
from training.weights.stream import Pass

log = logging.getLogger(__name__)

MODEL, MERGED = "model", "merged"


def export(config: Config, folder: Path, base: BaseSnapshot, data: Dataset, adapter: Adapter) -> QuantizedModel:
    """Write the fine-tuned model, or the adapter, for serving, and once per machine the base in the same scheme.

    Args:
        config: Sections `export`, `images` and `hardware` are used.
        folder: The step's folder. Gets `model/` and, where asked for, `merged/`; or `adapter/`.
        base: The published checkpoint.
        data: Prepared; predictions are compared on its evaluation rows.
        adapter: Trained on exactly this base.

    Raises:
        ExportRejected: The adapter belongs to another base, cannot be merged, or served beside it, or is broken, or
            what was written is not what should have been.
        MachineUnfit: Disk or memory is too small.
        SourceRefused: The base or the adapter holds what can run code.
    """
    _require_same_base(adapter, base)
    refuse_unsafe(base.path)
    refuse_code(adapter.path)
    verify_manifest(adapter.path, adapter.digest)
    checkpoint = open_checkpoint(base.path, base.digest)
    update = open_update(adapter.path, adapter.digest, checkpoint)
    # The base first: it is kept, so that a second attempt has only the rest to write.
    kept = _base_to_compare(config, checkpoint)
    if config.export.artifact == "adapter":
        return _beside(config, folder, Beside(base, checkpoint, kept), update, data)
    made = _make(config, folder, checkpoint, update, data)
    parity = _compare(config, folder, checkpoint, update, data, partial_of(folder / MODEL))
    model = _artifact(config, update, made, made.seal()[MODEL], kept, parity)
    if config.export.stored.calibrated and not config.export.keep_merged:
        shutil.rmtree(folder / MERGED)
    return model


def _require_same_base(adapter: Adapter, base: BaseSnapshot) -> None:
    if adapter.base_digest != base.digest:
        raise ExportRejected(
            f"the adapter was trained on base {adapter.base_digest[:12]}, and this is {base.digest[:12]}; "
            f"train on this one first"
        )


def _base_to_compare(config: Config, checkpoint: Checkpoint) -> Path | None:
    """The base in the candidate's scheme, uncalibrated; None where that is bf16, and the base itself is served."""
    scheme = config.export.stored.rounded
    if scheme.bits is None:
        return None
    max_bytes = config.export.max_shard_gb * 1e9
    return quantized_base(checkpoint, scheme, max_bytes, Settings().cache, _device(config))


def _make(config: Config, folder: Path, checkpoint: Checkpoint, update: Update, data: Dataset) -> Made:
    scheme, made_from = config.export.stored, {"base": checkpoint.digest, "adapter": update.digest}
    schemes = {MODEL: scheme}
    if config.export.keep_merged and scheme.bits and not scheme.calibrated:
        schemes[MERGED] = SCHEMES["bf16"]
    one_pass = Pass(checkpoint, update, schemes, config.export.max_shard_gb * 1e9, _device(config))
    if not scheme.calibrated:
        return make(one_pass, folder, config.images, made_from)
    from training.calibrated.making import make_calibrated

    return make_calibrated(config, one_pass, folder, MERGED, data, made_from)


def _beside(config: Config, folder: Path, beside: Beside, update: Update, data: Dataset) -> QuantizedModel:
    """Write the adapter alone, and hold base and adapter, as they will be served, against what was trained."""
    beside.require_servable(config)
    done = beside.write(folder / ADAPTER, update)
    parity = _compare(config, folder, beside.checkpoint, update, data, beside.served, folder / ADAPTER)
    return beside.artifact(config, done, update, parity)


def _compare(
    config: Config,
    folder: Path,
    checkpoint: Checkpoint,
    update: Update,
    data: Dataset,
    exported: Path,
    beside: Path | None = None,
) -> Parity | None:
    """Hold what the exported model predicts against the base with its adapter.

    Args:
        config: Of the run.
        folder: Of the step.
        checkpoint: The base.
        update: The adapter as it was trained.
        data: Has evaluation rows.
        exported: The written model; the base that is served, where the adapter lies beside it.
        beside: The written adapter, if it was not merged.

    Raises:
        ExportRejected: They differ by more than the config allows.
    """
    limits = config.export.parity
    if limits.prompts == 0:
        log.warning("export.parity.prompts is 0: nothing tells whether the exported model predicts what was trained")
        return None
    # With what it takes to run a model, imported only now: the pass has come by without.
    from training.chat.encoding import Encoder, load_processor
    from training.parity.measure import measure_parity
    from training.parity.prompts import Room, choose_prompts

    encoder = Encoder(load_processor(checkpoint.path, config.images.min_pixels, config.images.max_pixels))
    room = Room(config.serving.max_model_len, config.serving.images_per_request)
    merged = next((path for path in (folder / MERGED, partial_of(folder / MERGED)) if path.is_dir()), None)
    parity = measure_parity(
        checkpoint.path,
        update.lora.folder,
        exported,
        merged,
        choose_prompts(data.path, encoder, limits.prompts, room),
        device=_device(config),
        folder=folder / "parity",
        beside=beside,
    )
    require_parity(parity, config.export.stored, limits)
    return parity


def _artifact(
    config: Config, update: Update, made: Made, digest: str, kept: Path | None, parity: Parity | None
) -> QuantizedModel:
    scheme, figures = made.releases[MODEL].scheme, made.figures
    merged = made.folder / MERGED if config.export.keep_merged and scheme.bits else None
    made_from = made.releases[MODEL].made_from
    return QuantizedModel(
        path=made.folder / MODEL,
        digest=digest,
        scheme=scheme.name,
        group_size=scheme.group,
        size_bytes=made.size(MODEL),
        base_digest=made_from["base"],
        adapter_digest=made_from["adapter"],
        quantized_base_path=kept,
        quantized_base_digest=manifest_digest(kept) if kept else None,
        merged_path=merged,
        merged_digest=manifest_digest(merged) if merged else None,
        merged_bytes=sum(file.stat().st_size for file in merged.glob("*.safetensors")) if merged else None,
        quantized_tensors=made.quantized(MODEL),
        verified_tensors=made.verified,
        relative_error=fmean(figures.errors) if figures.errors else 0.0,
        delta_norm=fmean(update.norms.values()),
        stream_seconds=figures.seconds,
        mb_per_second=figures.read_bytes / 1e6 / figures.seconds,
        peak_rss_gib=figures.peak_rss_gib,
        parity=parity,
    )


def _device(config: Config) -> str:
    return config.export.device or config.hardware.device
