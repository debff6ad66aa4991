"""Export at the true shape: seconds against the ideal, memory, and the same by llm-compressor.

The ideal computes nothing: it reads the source, writes as many bytes as the exported model has to the same disk, one
after the other and at the same time, and syncs. Before each run the source is dropped from the page cache; runs take
turns, so that all see the same disk.

usage: python benchmarks/export.py FOLDER [--layers 4] [--device cpu cuda] [--repeat 3] [--peer PYTHON]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from pipelines.schemes import SCHEMES, Name
from training.weights.checkpoint import expected_tensors, open_checkpoint
from training.weights.writer import WRITEBACK_BYTES

THEN, MEANWHILE = "read, then write", "read and write"
"""The two ideals: one after the other, and at the same time as the export does it."""

CHUNK = 8 * 2**20
THREADS = 3
EXPORT = """
import json, sys, time
from pathlib import Path
import torch
from pipelines.schemes import SCHEMES
from training.provenance import open_update
from training.weights.checkpoint import open_checkpoint
from training.weights.making import make
from training.weights.stream import Pass
base, adapter, scheme, out, device = sys.argv[1:]
if device == "cuda":
    torch.zeros(1, device=device)
began = time.perf_counter()
checkpoint = open_checkpoint(Path(base), "0" * 64)
update = open_update(Path(adapter), "1" * 64, checkpoint) if adapter else None
opened = time.perf_counter() - began
made = make(Pass(checkpoint, update, {"model": SCHEMES[scheme]}, 5e9, device), Path(out), None, {})
made.seal()
whole = time.perf_counter() - began
print(json.dumps({
    "seconds": opened + made.figures.seconds,
    "proof": whole - opened - made.figures.seconds,
    "rss_gib": made.figures.peak_rss_gib,
    "gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else 0.0,
}))
"""
"""One export, in a process of its own, so that its memory is its own."""

Run = dict[str, float]


@dataclass
class Bench:
    """One checkpoint on one disk."""

    folder: Path
    layers: int
    rank: int
    repeat: int
    rows: dict[str, list[Run]] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The checkpoint."""
        return self.folder / f"base-{self.layers}"

    @property
    def adapter(self) -> Path:
        """Of attention and all experts."""
        return self.folder / f"adapter-{self.layers}-r{self.rank}"

    @property
    def out(self) -> Path:
        """Where exports go."""
        return self.folder / "out"

    @property
    def read(self) -> int:
        """Bytes of the source."""
        return sum(file.stat().st_size for file in self.base.glob("*.safetensors"))

    def prepare(self) -> None:
        """Make what is missing."""
        if not (self.base / "tokenizer_config.json").is_file():
            shutil.rmtree(self.base, ignore_errors=True)
            command = [sys.executable, "benchmarks/true_shape.py", str(self.base), "--layers", str(self.layers)]
            subprocess.run(command, check=True, env=_environment())
        if not self.adapter.is_dir():
            write_adapter(self.adapter, self.layers, self.rank)

    def run(self, scheme: Name, device: str, adapters: tuple[str, ...]) -> None:
        """Measure the ideal and the export in turn."""
        written = self.written(scheme)
        sizes = f"{self.read / 1e9:.1f} GB read, {written / 1e9:.1f} GB written for {scheme}"
        for _ in range(self.repeat):
            self.measure(f"{THEN}: {sizes}", lambda: self.ideal(written, together=False))
            self.measure(f"{MEANWHILE}: {sizes}", lambda: self.ideal(written, together=True))
            for adapter in adapters:
                what = "base and adapter" if adapter else "base alone"
                command = [sys.executable, "-c", EXPORT, str(self.base), adapter, scheme, str(self.out), device]
                self.measure(f"{scheme} on {device}, {what}", lambda command=command: self.started(command))

    def peer(self, python: str) -> None:
        """llm-compressor's way without building the model; it merges no adapter."""
        command = [python, "benchmarks/model_free_ptq.py", str(self.base), str(self.out)]
        for _ in range(self.repeat):
            self.measure("llm-compressor model_free_ptq W8A8, base alone", lambda: self.started(command))

    def written(self, scheme: Name) -> int:
        """Bytes of the exported weights."""
        groups = expected_tensors(open_checkpoint(self.base, "").planned, SCHEMES[scheme])
        return sum(spec.nbytes for group in groups for spec in group)

    def measure(self, name: str, run: Callable[[], Run]) -> None:
        """With nothing of the source in the page cache, and nothing waiting for the disk."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()
        for file in self.base.glob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.rows.setdefault(name, []).append(run())

    def ideal(self, written: int, *, together: bool) -> Run:
        """Read everything by several threads, write as many bytes as the export has, sync."""
        began = time.perf_counter()
        writer = threading.Thread(target=self._write, args=(written,))
        if together:
            writer.start()
        with ThreadPoolExecutor(THREADS) as pool:
            for file in sorted(self.base.glob("*.safetensors")):
                descriptor = os.open(file, os.O_RDONLY)
                starts = range(0, file.stat().st_size, CHUNK)
                list(pool.map(lambda start, descriptor=descriptor: len(os.pread(descriptor, CHUNK, start)), starts))
                os.close(descriptor)
        if not together:
            writer.start()
        writer.join()
        return {"seconds": time.perf_counter() - began}

    def started(self, command: list[str]) -> Run:
        """What a process prints last."""
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
        result: Run = json.loads(done.stdout.splitlines()[-1])
        return result

    def table(self) -> Table:
        """All runs; medians are compared with both ideals of the same scheme, which stand above."""
        table = Table(title=f"{self.layers} layers, {self.read / 1e9:.1f} GB, adapter of rank {self.rank}")
        ratios = (f"of {THEN}", f"of {MEANWHILE}")
        for column in ("what", "seconds", "of each run", "GB read/s", *ratios, "proof, s", "RSS GiB", "GPU GiB"):
            table.add_column(column)
        best = dict.fromkeys((THEN, MEANWHILE), 0.0)
        for name, runs in self.rows.items():
            seconds = statistics.median(run["seconds"] for run in runs)
            best |= {ideal: seconds for ideal in best if name.startswith(ideal)}
            peaks = [f"{max(run.get(key, 0.0) for run in runs):.2f}" for key in ("proof", "rss_gib", "gpu_gib")]
            each = ", ".join(f"{run['seconds']:.1f}" for run in runs)
            rate = self.read / seconds / 1e9
            table.add_row(
                name, f"{seconds:.1f}", each, f"{rate:.2f}", *(f"{one / seconds:.2f}" for one in best.values()), *peaks
            )
        return table

    def _write(self, size: int) -> None:
        self.out.mkdir(parents=True)
        data = os.urandom(CHUNK)
        with (self.out / "ideal").open("wb", buffering=0) as stream:
            for start in range(0, size, CHUNK):
                stream.write(data[: size - start])
                if start % WRITEBACK_BYTES == 0:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.fsync(stream.fileno())


def write_adapter(folder: Path, layers: int, rank: int) -> None:
    """A random adapter of attention and experts, in PEFT's layout, fp32."""
    widths = {"q_proj": (4096, 2048), "k_proj": (512, 2048), "v_proj": (512, 2048), "o_proj": (2048, 4096)}
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.language_model.layers.{layer}"
        for projection, (out, width) in widths.items():
            tensors |= _pair(f"{name}.self_attn.{projection}", out, width, rank, 1)
        tensors |= _pair(f"{name}.mlp.experts.base_layer", 1536, 2048, rank, 128)
        tensors |= _pair(f"{name}.mlp.experts", 2048, 768, rank, 128)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"}))


def _pair(name: str, out: int, width: int, rank: int, experts: int) -> dict[str, torch.Tensor]:
    a, b = torch.randn(experts * rank, width), torch.randn(out, rank * experts)
    return {f"{name}.lora_A.weight": a.mul_(0.01), f"{name}.lora_B.weight": b.mul_(0.01)}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="on the disk that is measured; keeps the checkpoint")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", nargs="+", default=["cpu"], choices=["cpu", "cuda"])
    parser.add_argument("--scheme", nargs="+", default=["int8_w8a8"], choices=sorted(SCHEMES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--with-adapter-only", action="store_true", help="leave out exports of the base alone")
    parser.add_argument("--peer", metavar="PYTHON", help="of `make quantize-env`: measure llm-compressor too")
    options = parser.parse_args(argv)
    bench = Bench(options.folder, options.layers, options.rank, options.repeat)
    bench.prepare()
    adapters = (str(bench.adapter),) if options.with_adapter_only else ("", str(bench.adapter))
    for scheme in options.scheme:
        for device in options.device:
            bench.run(scheme, device, adapters)
    if options.peer:
        bench.peer(options.peer)
    Console(width=170).print(bench.table())


if __name__ == "__main__":
    main()
