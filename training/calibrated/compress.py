"""A merged model in a calibrated scheme: llm-compressor computes it in its own environment, and we check every tensor.

Its work is slow and whole: all weights lie in host memory, each decoder layer is calibrated after the one below it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artifacts import Dataset
from pipelines.config import Config
from pipelines.errors import ExportRejected, MachineUnfit
from pipelines.schemes import Scheme
from pipelines.settings import ROOT, Settings
from pipelines.system.durable import sha256_file, write_text
from pipelines.system.machine import require_disk, require_memory
from pipelines.system.processes import running, tail
from training.calibrated.comparison import compare
from training.calibrated.rows import write_rows
from training.chat.encoding import Encoder, load_processor
from training.int8 import groups_of, is_quantized, quantization_config
from training.weights.shards import Stored, read_headers
from training.weights.writer import Written

log = logging.getLogger(__name__)

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
MEMORY_BYTES = 2**30
"""Host memory of the process itself."""

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Calibration:
    """What was done, and how far it is from the merged model."""

    rows: int
    """Training rows seen."""

    errors: tuple[float, ...]
    """||dequantised - merged|| / ||merged|| of each quantised tensor."""

    fallbacks: int
    """Layers rounded to nearest, because too few rows reached them to tell more."""

    files: tuple[Written, ...]
    """Of the weights."""


def calibrate(config: Config, scheme: Scheme, merged: Path, data: Dataset, out: Path) -> Calibration:
    """Write the weights of a merged model in a calibrated scheme, and nothing else; `Release` does the rest.

    Args:
        config: Sections `export`, `images` and `data.seed` are used.
        scheme: A calibrated one.
        merged: A finished bf16 model, its experts as separate matrices.
        data: Prepared; rows of its training split are seen.
        out: Gets safetensors files and their index. What is there is removed.

    Raises:
        MachineUnfit: The environment of llm-compressor is missing, or host memory or disk are too small.
        ExportRejected: llm-compressor failed, or what it wrote is not the merged model in this scheme.
    """
    python = _environment(scheme)
    stored = read_headers(merged)
    _require_groups(stored, scheme)
    _require_room(stored, scheme, out.parent)
    work = out.with_name(f".{out.name.strip('.')}.calibration")
    for leftover in (work, out):
        shutil.rmtree(leftover, ignore_errors=True)
    encoder = Encoder(load_processor(merged, config.images.min_pixels, config.images.max_pixels))
    rows = write_rows(data.path, encoder, config.export.calibration_rows, config.data.seed, work / "rows")
    oneshot(python, plan(scheme, merged, work / "rows", out, int(config.export.max_shard_gb * 1e9)), work)
    files = keep_weights(out)
    errors = compare(merged, out, scheme)
    fallbacks = _fallbacks((work / "log.txt").read_text(errors="replace"))
    shutil.rmtree(work)
    return Calibration(rows, tuple(errors), fallbacks, tuple(files))


def plan(scheme: Scheme, merged: Path, rows: Path, out: Path, shard_bytes: int) -> dict[str, Any]:
    """What `training.calibrated.oneshot` is told: llm-compressor is asked for exactly what vLLM will be promised."""
    promised = quantization_config(scheme)
    return {
        "model": str(merged),
        "rows": str(rows),
        "out": str(out),
        "method": scheme.method,
        "groups": promised["config_groups"],
        "ignore": promised["ignore"],
        "shard_bytes": shard_bytes,
    }


def oneshot(python: str, plan: dict[str, Any], work: Path) -> None:
    """Run llm-compressor, saying which decoder layer it is at.

    Args:
        python: Interpreter of its environment.
        plan: What to do.
        work: Gets the plan and the log, which stays there if this fails.

    Raises:
        ExportRejected: It failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "plan.json").write_text(json.dumps(plan, indent=1))
    command = [python, "-m", "training.calibrated.oneshot", str(work / "plan.json")]
    output = work / "log.txt"
    with running(command, output, {**OFFLINE, "PYTHONPATH": str(ROOT)}) as process:
        _follow(process, output)
    if process.returncode:
        raise ExportRejected(
            f"llm-compressor ended with exit code {process.returncode}; {output} ends:\n{tail(output)}"
        )


def keep_weights(folder: Path) -> list[Written]:
    """Leave the weights as we write them: readable by all, synced, with an index; remove what else was written."""
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    tensors = read_headers(folder)
    weight_map = {tensor.name: tensor.file.name for tensor in tensors}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
    files = [_settle(file) for file in sorted(folder.iterdir())]
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1))
    return files


def _settle(file: Path) -> Written:
    file.chmod(0o644)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return Written(file.name, file.stat().st_size, sha256_file(file))


def _environment(scheme: Scheme) -> str:
    python = Settings().quantize_python
    if python is None or not Path(python).is_file():
        raise MachineUnfit(f"export.scheme {scheme.name} needs `make quantize-env`: llm-compressor is not installed")
    return python


def _require_groups(stored: Sequence[Stored], scheme: Scheme) -> None:
    for tensor in stored:
        if is_quantized(tensor.name, tensor.shape):
            groups_of(tensor.name, tensor.shape[1], scheme)


def _require_room(stored: Sequence[Stored], scheme: Scheme, folder: Path) -> None:
    size = sum(tensor.nbytes for tensor in stored)
    purpose = f"export.scheme {scheme.name}"
    require_memory(memory_bytes(stored), f"{purpose}, which holds the whole model,")
    require_disk(folder, size, purpose)


def memory_bytes(stored: Sequence[Stored]) -> int:
    """Host memory that a calibration takes: the model, and what is known about the inputs of a layer's matrices.

    Measured at the widths of a 30B mixture of experts with 4 experts in 2 and 6 layers, it took three quarters of this.
    """
    layers: Counter[str] = Counter()
    for tensor in stored:
        if is_quantized(tensor.name, tensor.shape):
            layers[tensor.name.partition(".layers.")[2].partition(".")[0]] += 4 * tensor.shape[1] ** 2  # fp32
    return MEMORY_BYTES + int(1.2 * sum(tensor.nbytes for tensor in stored) + 1.5 * max(layers.values(), default=0))


def _follow(process: subprocess.Popen[bytes], output: Path) -> None:
    told = ""
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        seen = re.findall(r"\((\d+/\d+)\): Calibrating", tail(output, 5))
        if seen and seen[-1] != told:
            told = seen[-1]
            log.info("calibrating part %s", told)


def _fallbacks(text: str) -> int:
    """Layers whose statistics could not be inverted, as llm-compressor sums up at its end."""
    found = re.search(r"Hessian inversion failed for (\d+)/", text)
    return int(found[1]) if found else 0
