"""Serving at the exact shape of Qwen3-VL-30B-A3B within 48 GiB of a larger card: schemes, settings, and what limits.

Weights are vLLM's dummy ones: memory and speed are those of the real model, quality is not and has no column. Every
engine gets the share of the card that a 48 GiB card would have, and load comes from `vllm bench serve` through
`serving.load`, no picture twice.

usage: python -m benchmarks.serve_true_shape FOLDER [--only planned workers ...] [--seconds 580]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.true_shape import write_config
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.config_load import Load
from pipelines.errors import EngineFailed
from pipelines.load_report import LoadPoint
from pipelines.schemes import SCHEMES, Name
from serving.engine import Engine, Launch, engine
from serving.load.bench import Target
from serving.load.points import measure_load
from serving.load.prompts import Prompt
from training.int8 import quantization_config
from training.weights.released import served_config

WORKERS = ("--renderer-num-workers", "8")
"""Pictures are prepared by eight threads."""

CARD_DEFAULTS = ("--max-num-batched-tokens", "2048", "--max-num-seqs", "256")
"""Of vLLM on cards below 70 GiB; said, because this card is larger."""

UNCAPPED = json.dumps({"size": {"shortest_edge": 65536, "longest_edge": 16_777_216}})
"""The pixel limits that the model is published with."""

SQUARE, PHOTO = (1024, 1024), (1920, 1440)
OUTPUT_TOKENS = 128


@dataclass(frozen=True)
class Case:
    """An engine, and the load it gets."""

    scheme: Name
    what: str
    extra: tuple[str, ...] = ()
    points: tuple[tuple[tuple[int, int], int, int], ...] = ()
    """Picture, requests in flight, requests."""


ALL_POINTS = ((SQUARE, 1, 12), (SQUARE, 4, 32), (SQUARE, 64, 256))
CASES = {
    "bf16": Case("bf16", "planned", ("--enforce-eager",)),
    "planned": Case("int8_w8a8", "planned, one worker", (), ALL_POINTS),
    "workers": Case("int8_w8a8", "planned, 8 workers", WORKERS, (*ALL_POINTS[2:], (PHOTO, 64, 192))),
    "int4": Case("int4_w4a16", "planned, 8 workers", WORKERS, ALL_POINTS),
    "defaults": Case(
        "int8_w8a8", "vLLM's defaults", (*CARD_DEFAULTS, "--mm-processor-kwargs", UNCAPPED), ((PHOTO, 64, 192),)
    ),
    "article": Case("int8_w8a8", "4 at a time", ("--max-num-seqs", "4"), ((PHOTO, 64, 96),)),
}


@dataclass
class Row:
    """What one engine showed."""

    case: Case
    ready_seconds: float | None = None
    weights_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    error: str = ""
    points: dict[str, LoadPoint] = field(default_factory=dict)


class Bench:
    """All engines, one after the other."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder, self.deadline = folder, deadline
        config = load_config(
            Path("configs/qwen3_vl_30b.yaml"),
            ("hardware=h200_capped_48gb", "serving.gpu_memory_utilization=0.85", "serving.images_per_request=1"),
        )
        hardware = config.hardware.model_copy(update={"card_gib": card_gib()})
        self.config = config.model_copy(update={"hardware": hardware})
        self.rows: dict[str, Row] = {}

    def run(self, name: str) -> None:
        """Start one engine and measure it, while there is time."""
        row = self.rows[name] = Row(CASES[name])
        if time.monotonic() > self.deadline:
            row.error = "not measured: out of time"
            return
        model = model_folder(self.folder / row.case.scheme, row.case.scheme)
        log = self.folder / f"{name}.log"
        with ExitStack() as stack:
            started = stack.enter_context(engine(_launch(self.config, model, row.case), log))
            try:
                row.ready_seconds = started.wait_ready(max(1.0, self.deadline - time.monotonic()))
            except EngineFailed:
                row.error = reason(log)
            self._read_log(row, log.read_text(errors="replace"))
            if row.ready_seconds is not None:
                self._load(row, started, model, self.folder / name)
        print(json.dumps(self.summary(name)), flush=True)

    def _load(self, row: Row, started: Engine, model: Path, folder: Path) -> None:
        for size, concurrency, requests in row.case.points:
            if time.monotonic() > self.deadline:
                row.error = "stopped: out of time"
                return
            wanted = Load(
                concurrencies=(concurrency,), requests=requests, warmup=8, repeats=1, output_tokens=OUTPUT_TOKENS
            )
            place = folder / f"{size[0]}-{concurrency}"
            report = measure_load(Target(started.url, "true-shape", model), pictures(place, size), wanted, place)
            row.points[f"{size[0]}x{size[1]} at {concurrency}"] = report.points[0]

    def _read_log(self, row: Row, log: str) -> None:
        row.weights_gib = _number(r"Model loading took ([\d.]+) GiB", log)
        row.kv_gib = _number(r"Available KV cache memory: ([\d.]+) GiB", log)
        tokens = re.search(r"GPU KV cache size: ([\d,]+) tokens", log)
        row.kv_tokens = int(tokens[1].replace(",", "")) if tokens else None

    def summary(self, name: str) -> dict[str, Any]:
        """A row as JSON."""
        row = self.rows[name]
        return {
            "case": name,
            "scheme": row.case.scheme,
            "what": row.case.what,
            **{key: getattr(row, key) for key in ("ready_seconds", "weights_gib", "kv_gib", "kv_tokens", "error")},
            "points": {key: point.model_dump(mode="json") for key, point in row.points.items()},
        }

    def table(self) -> Table:
        """A line for each engine and load."""
        table = Table(title="exact shape of Qwen3-VL-30B-A3B, dummy weights (no quality column), 48 GiB x 0.85")
        for column in ("scheme", "settings", "ready s", "weights GiB", "KV GiB", "KV tokens", "picture and in flight"):
            table.add_column(column)
        for column in ("requests/min", "first token p50 ms", "a token p50 ms", "whole p50 / p99 s", "remarks"):
            table.add_column(column)
        for row in self.rows.values():
            table.add_row(row.case.scheme, row.case.what, *map(_text, _facts(row)), *[""] * 5, row.error)
            for name, point in row.points.items():
                table.add_row(*[""] * 6, name, *_figures(point))
        return table


def card_gib() -> float:
    """Memory of the card that is there, in a process of its own, which then holds none of it."""
    ask = "import torch; print(torch.cuda.mem_get_info()[1] / 2**30)"
    return float(subprocess.run([sys.executable, "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout)


def model_folder(folder: Path, scheme: Name) -> Path:
    """Config, tokenizer and processor of the shape in one scheme; no weights."""
    if not (folder / "config.json").is_file():
        write_config(folder, whole_vocabulary=True)
        config = served_config(json.loads((folder / "config.json").read_text()))
        stored = SCHEMES[scheme]
        quantized = {"quantization_config": quantization_config(stored)} if stored.bits else {}
        (folder / "config.json").write_text(json.dumps(config | quantized))
    return folder


def pictures(folder: Path, size: tuple[int, int]) -> list[Prompt]:
    """A few photographs of nothing: coarse noise, enlarged, which JPEG keeps at about the size of a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = []
    for number in range(8):
        path = folder / f"{number}.jpg"
        noise = Image.frombytes("RGB", (size[0] // 8, size[1] // 8), os.urandom(size[0] // 8 * (size[1] // 8) * 3))
        noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
        prompts.append(Prompt((path,), "red green blue?"))
    return prompts


def reason(log: Path) -> str:
    """What vLLM gave as its reason not to start."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if re.search(r"\w*Error: ", line)]
    return re.sub(r".*?(\w*Error: )", r"\1", lines[-1])[:160] if lines else "died; see its log"


def _launch(config: Config, model: Path, case: Case) -> Launch:
    return Launch(
        model=model,
        names=("true-shape",),
        serving=config.serving,
        images=config.images,
        hardware=config.hardware,
        extra=("--load-format", "dummy", "--no-enable-prefix-caching", *case.extra),
    )


def _number(pattern: str, log: str) -> float | None:
    found = re.search(pattern, log)
    return float(found[1]) if found else None


def _facts(row: Row) -> Iterator[float | int | None]:
    yield from (row.ready_seconds, row.weights_gib, row.kv_gib, row.kv_tokens)


def _figures(point: LoadPoint) -> tuple[str, ...]:
    run = point.runs[0]
    if point.objections:
        return ("", "", "", "", "invalid: " + "; ".join(point.objections))
    whole = f"{run.e2e_p50_ms / 1000:.2f} / {run.e2e_p99_ms / 1000:.2f}"
    speed = (f"{run.requests_per_minute:.0f}", f"{run.ttft_p50_ms:.0f}", f"{run.tpot_p50_ms:.1f}")
    return (*speed, whole, f"KV {run.kv_usage_peak:.0%}, {run.preemptions} preempted")


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=3600, help="start nothing after so many")
    options = parser.parse_args()
    bench = Bench(options.folder, time.monotonic() + options.seconds)
    try:
        for name in options.only:
            bench.run(name)
    finally:
        Console(width=220).print(bench.table())


if __name__ == "__main__":
    main()
