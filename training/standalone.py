"""`vlmops export`: a run's model, or any local checkpoint, exported alone.

`python -m training.standalone RUN|BASE [--adapter A] [--scheme S] [--group-size G] [--out DIR] [--adapter-only]`

Everything that can be refused by names, configs and headers is refused before a weight is read. An interrupted export
is continued by the same command.
"""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from pipelines.config import Images
from pipelines.errors import DONE, FAILED, VlmopsError
from pipelines.parity import Parity, require_parity
from pipelines.system.manifest import NAME, manifest_digest, verify_manifest
from pipelines.system.processes import end_cleanly_on_sigterm
from training.calibrated.making import make_calibrated
from training.chat.encoding import Encoder, load_processor
from training.export_job import Job, arguments, job_of
from training.exported_table import show_adapter, show_export
from training.parity.measure import measure_parity
from training.parity.prompts import Prompt, Room, choose_prompts, draw_prompts
from training.provenance import digest_or_hash, open_update, require_same_base
from training.served_adapter import export_adapter
from training.sources.safety import refuse_code, refuse_unsafe
from training.weights.checkpoint import Checkpoint, Update, open_checkpoint
from training.weights.making import Made, make
from training.weights.stream import Pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What an export gave."""

    path: Path
    digest: str
    """Of its manifest."""

    made: Made
    update_norm: float | None
    """Mean of ||update|| / ||weight|| over the adapted tensors; None without an adapter."""

    parity: Parity | None
    """None where no prompts are asked for."""


def run_job(job: Job, *, adapter_only: bool) -> None:
    """Check everything, export, and say what came out.

    Raises:
        SourceRefused: The base or the adapter holds what can run code, or leads out of its folder.
        ExportRejected: The adapter belongs to another base, is broken or cannot be merged, or what was written is not
            what should have been.
        MachineUnfit: Disk or memory is too small.
        RunConflict: Another process is exporting to the same folder.
    """
    refuse_unsafe(job.base)
    made_from = _made_from(job)
    checkpoint = open_checkpoint(job.base, made_from.get("base", ""))
    update = open_update(job.adapter, made_from["adapter"], checkpoint) if job.adapter else None
    with job.claim():
        if adapter_only:
            assert update is not None
            show_adapter(export_adapter(update.lora, job.base, job.out, made_from))
        else:
            show_export(export_checkpoint(job, checkpoint, update, made_from))


def export_checkpoint(job: Job, checkpoint: Checkpoint, update: Update | None, made_from: dict[str, str]) -> Outcome:
    """Write a checkpoint with an adapter merged into it, proven and with a manifest, as an engine loads it.

    Args:
        job: Where to, and how.
        checkpoint: The base.
        update: What is merged.
        made_from: Digests, for the manifest.

    Raises:
        ExportRejected: What was written is not what should have been, or does not predict what it should.
        MachineUnfit: Disk or memory is too small.
    """
    name, scheme = job.out.name, job.export.stored
    one_pass = Pass(checkpoint, update, {name: scheme}, job.export.max_shard_gb * 1e9, job.device)
    made = _make(job, one_pass, made_from)
    parity = _compare(job, made.unfinished(name)) if job.export.parity.prompts else None
    norm = fmean(update.norms.values()) if update else None
    digest = made.seal()[name]
    shutil.rmtree(job.merged, ignore_errors=True)
    return Outcome(job.out, digest, made, norm, parity)


def _make(job: Job, one_pass: Pass, made_from: dict[str, str]) -> Made:
    folder = job.out.parent
    if job.export.stored.calibrated and job.record:
        return make_calibrated(job.record.config, one_pass, folder, job.merged.name, job.record.data, made_from)
    return make(one_pass, folder, job.images, made_from)


def _compare(job: Job, written: Path) -> Parity:
    """Hold what was written against the base with its adapter: on evaluation rows, or on drawn pictures."""
    images = job.images or Images()
    encoder = Encoder(load_processor(job.base, images.min_pixels, images.max_pixels))
    with TemporaryDirectory() as name:
        folder = Path(name)
        prompts = _prompts(job, encoder, folder)
        found = measure_parity(job.base, job.adapter, written, None, prompts, device=job.device, folder=folder)
    require_parity(found, job.export.stored, job.export.parity)
    return found


def _prompts(job: Job, encoder: Encoder, folder: Path) -> list[Prompt]:
    count = job.export.parity.prompts
    if job.record is None:
        return draw_prompts(folder, encoder, count)
    serving = job.record.config.serving
    return choose_prompts(job.record.data.path, encoder, count, Room(serving.max_model_len, serving.images_per_request))


def _made_from(job: Job) -> dict[str, str]:
    """Digests of base and adapter; of a base only where it is known or asked for."""
    if job.adapter is None:
        return {"base": manifest_digest(job.base)} if (job.base / NAME).is_file() else {}
    refuse_code(job.adapter)
    if (job.adapter / NAME).is_file():
        verify_manifest(job.adapter)
    base = require_same_base(job.base, job.adapter)
    return {**({"base": base} if base else {}), "adapter": digest_or_hash(job.adapter)}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = arguments().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    end_cleanly_on_sigterm()
    try:
        run_job(job_of(args), adapter_only=args.adapter_only)
    except VlmopsError as error:
        sys.stderr.write(f"vlmops: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("vlmops: stopped; the same command goes on with the file that it was writing\n")
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
