"""The export of an adapter alone: on which base it is served, whether that can be, and what came out."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipelines.artifacts import BaseSnapshot
from pipelines.config import Config
from pipelines.errors import ExportRejected
from pipelines.exported import QuantizedModel
from pipelines.parity import Parity
from pipelines.system.manifest import manifest_digest
from training.served_adapter import ServedAdapter, export_adapter
from training.weights.checkpoint import Checkpoint, Update
from training.weights.stream import peak_rss_gib

ADAPTER = "adapter"
"""Folder of the step's folder."""


@dataclass(frozen=True)
class Written:
    """An adapter on disk, and what writing it took."""

    adapter: ServedAdapter
    seconds: float


@dataclass(frozen=True)
class Beside:
    """A base, as it was published and as adapters are served on it."""

    base: BaseSnapshot
    checkpoint: Checkpoint
    quantized: Path | None
    """In the scheme of the config, shared by all runs; None where that is bf16, and the base itself is served."""

    @property
    def served(self) -> Path:
        """What vLLM loads."""
        return self.quantized or self.base.path

    def require_servable(self, config: Config) -> None:
        """Refuse what no engine could serve, or nobody could verify later.

        Raises:
            ExportRejected: Says what to set instead.
        """
        if self.checkpoint.experts and config.hardware.device == "cpu":
            raise ExportRejected(
                "vLLM serves no adapter on a mixture of experts on a CPU: the engine says that it is healthy, and dies "
                "at the first request; set export.artifact merged, or hardware with a card"
            )
        if self.quantized is None and self.base.manifest is not None:
            raise ExportRejected(
                f"{self.base.path} is not ours to write in, so its manifest lies elsewhere, and whoever serves an "
                f"adapter on it could not verify it; set export.artifact merged, or a scheme other than bf16"
            )

    def write(self, out: Path, update: Update) -> Written:
        """Write the adapter in the layout that vLLM serves; what an earlier attempt left is replaced.

        Raises:
            ExportRejected: vLLM cannot serve it.
            MachineUnfit: The disk is too small.
        """
        began = time.monotonic()
        shutil.rmtree(out, ignore_errors=True)
        made_from = {
            "base": self.checkpoint.digest,
            "adapter": update.digest,
            "served_base": manifest_digest(self.served),
        }
        adapter = export_adapter(update.lora, self.served, out, made_from)
        return Written(adapter, time.monotonic() - began)

    def artifact(self, config: Config, done: Written, update: Update, parity: Parity | None) -> QuantizedModel:
        """What the step hands on: nothing of it was merged or rounded."""
        scheme, size = config.export.stored, done.adapter.size_bytes
        digest = manifest_digest(self.quantized) if self.quantized else None
        return QuantizedModel(
            path=done.adapter.path,
            digest=manifest_digest(done.adapter.path),
            served_base_path=self.served,
            served_base_digest=manifest_digest(self.served),
            scheme=scheme.name,
            group_size=scheme.group,
            size_bytes=size,
            base_digest=self.checkpoint.digest,
            adapter_digest=update.digest,
            quantized_base_path=self.quantized,
            quantized_base_digest=digest,
            merged_path=None,
            merged_digest=None,
            merged_bytes=None,
            quantized_tensors=0,
            verified_tensors=0,
            relative_error=0.0,
            delta_norm=fmean(update.norms.values()),
            stream_seconds=done.seconds,
            mb_per_second=size / 1e6 / done.seconds,
            peak_rss_gib=peak_rss_gib(),
            parity=parity,
        )
