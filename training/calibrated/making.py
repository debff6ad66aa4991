"""A model in a calibrated scheme on its way to a finished folder: merged in bf16, from which llm-compressor starts.

The merged model is whole and sealed, so that an interrupted calibration starts with it.
"""

from __future__ import annotations

import time
from pathlib import Path

from pipelines.artifacts import Dataset
from pipelines.config import Config
from pipelines.schemes import SCHEMES
from pipelines.system.durable import partial_of
from pipelines.system.manifest import read_manifest
from training.calibrated.compress import calibrate
from training.sources.cache import is_whole
from training.weights.making import Made, make
from training.weights.released import Release
from training.weights.stream import Figures, Pass, peak_rss_gib


def make_calibrated(
    config: Config, one_pass: Pass, folder: Path, merged: str, data: Dataset, made_from: dict[str, str]
) -> Made:
    """Write one model, calibrated on training rows.

    Args:
        config: Sections `export`, `images` and `data.seed` are used.
        one_pass: What is written of what: one model in a calibrated scheme.
        folder: Where it will lie, and beside it the merged one.
        merged: Name of the merged model's folder; one that is there and made of the same is used.
        data: Prepared.
        made_from: Digests, for the manifests.

    Raises:
        ExportRejected: llm-compressor failed, or what was written is not what should have been.
        MachineUnfit: The environment of llm-compressor is missing, or disk or memory is too small.
    """
    ((name, scheme),) = one_pass.schemes.items()
    checkpoint, partial = one_pass.checkpoint, partial_of(folder / name)
    if not (is_whole(folder / merged) and read_manifest(folder / merged)["made_from"] == made_from):
        merge = Pass(checkpoint, one_pass.update, {merged: SCHEMES["bf16"]}, one_pass.max_bytes, one_pass.device)
        make(merge, folder, config.images, made_from).seal()
    began = time.monotonic()
    done = calibrate(config, scheme, folder / merged, data, partial)
    seconds = time.monotonic() - began
    release = Release(checkpoint, scheme, config.images, made_from)
    release.complete(partial)
    read = sum(one.source.nbytes for one in checkpoint.planned if not one.expert)
    figures = Figures(done.errors, {name: list(done.files)}, read, seconds, peak_rss_gib())
    return Made(folder, {name: release}, figures, verified=len(done.errors))
