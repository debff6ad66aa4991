"""Writes an export of the exact shape of Qwen3-VL-30B-A3B whose numbers are random, as fast as the disk takes it.

Speed and memory are those of the real model, and two seeds answer differently; quality is not.

usage: python -m benchmarks.true_release FOLDER [--layers 48] [--scheme int8_w8a8] [--seed 1]
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from benchmarks.true_shape import on_disk, published_shapes, write_config
from pipelines.schemes import SCHEMES, Name
from pipelines.system.durable import partial_of
from training.weights.checkpoint import Checkpoint, expected_tensors, open_checkpoint
from training.weights.released import Release
from training.weights.shards import Spec, as_bytes, header_bytes
from training.weights.writer import ModelWriter, Written, split

POOL = 2**26 + 1
"""Random numbers that are made; tensors take them from different places. Odd, so that no two rows are the same."""

SHARD_BYTES = 5e9
SPREAD = 0.02
"""Standard deviation of a weight."""


class Numbers:
    """Bytes of random tensors, by type."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        steps = self._random.integers(-127, 128, POOL, dtype=np.int8)
        weights = torch.from_numpy(self._random.standard_normal(POOL, dtype=np.float32) * SPREAD)
        self._pools = {torch.int8: torch.from_numpy(steps), torch.bfloat16: weights.bfloat16()}

    def of(self, spec: Spec) -> Iterator[memoryview]:
        """The data of a tensor, piece by piece."""
        if spec.name.endswith("_scale"):
            yield as_bytes(torch.full(spec.shape, SPREAD / 73.3, dtype=spec.dtype))  # steps spread by 73.3
        elif len(spec.shape) == 1 and spec.name.endswith("weight"):  # of a norm
            yield as_bytes(torch.ones(spec.shape, dtype=spec.dtype))
        else:
            yield from self._pieces(self._pools[spec.dtype], torch.Size(spec.shape).numel())

    def _pieces(self, pool: torch.Tensor, left: int) -> Iterator[memoryview]:
        start = int(self._random.integers(POOL))
        while left:
            piece = pool[start : start + left]
            yield as_bytes(piece)
            left, start = left - piece.numel(), 0


def write_release(folder: Path, layers: int, scheme: Name, seed: int) -> None:
    """Write weights, manifest and all that belongs to them."""
    shape = folder.with_name(f"{folder.name}.shape")
    checkpoint = _hollow(shape, layers)
    specs = [spec for group in expected_tensors(checkpoint.planned, SCHEMES[scheme]) for spec in group]
    numbers, partial = Numbers(seed), partial_of(folder)
    partial.mkdir(parents=True)
    numbered = zip(split([spec.nbytes for spec in specs], SHARD_BYTES), specs, strict=True)
    shards = [[spec for _, spec in shard] for _, shard in itertools.groupby(numbered, key=itemgetter(0))]
    files: list[Written] = []
    with ModelWriter(partial, shards, lambda _, written: files.append(written)) as writer:
        for number, shard in enumerate(shards):
            for spec in shard:
                offset = 0
                for data in numbers.of(spec):
                    writer.write(number, spec.name, offset, data)
                    offset += len(data)
    release = Release(checkpoint, SCHEMES[scheme], None, {"random": f"seed {seed}"})
    release.complete(partial)
    release.seal(folder, files)
    shutil.rmtree(shape)


def _hollow(folder: Path, layers: int) -> Checkpoint:
    """The checkpoint that it could have been exported from: headers, and holes for weights."""
    shapes = published_shapes(write_config(folder, layers, whole_vocabulary=True))
    specs = [Spec(name, torch.bfloat16, on_disk(name, shape)) for name, shape in shapes.items()]
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header_bytes(specs))
        stream.truncate(stream.tell() + sum(spec.nbytes for spec in specs))
    return open_checkpoint(folder, "0" * 64)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--scheme", default="int8_w8a8", choices=("int8_w8a8", "bf16"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_release(options.folder, options.layers, options.scheme, options.seed)
