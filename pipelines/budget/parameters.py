"""How many parameters a model has, part by part: by its safetensors headers, or by its shape where none are there."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pipelines.budget.shape import ModelShape, VisionShape
from pipelines.errors import BadInput

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer ones."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Counts by part."""

    experts: int = 0
    attention: int = 0
    mlp: int = 0
    embedding: int = 0
    head: int = 0
    vision: int = 0
    router: int = 0
    norms: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    @property
    def quantized(self) -> int:
        """Those of the linear layers that are stored in 4 or 8 bits."""
        return self.experts + self.attention + self.mlp


PARTS = (
    ("vision", r".*\bvisual\..*"),
    ("experts", r".*\.mlp\.experts\..*"),
    ("router", r".*\.mlp\.gate\.weight"),
    ("attention", r".*\.self_attn\.[qkvo]_proj\..*"),
    ("mlp", r".*\.mlp\.(gate|up|down|gate_up)_proj\..*"),
    ("embedding", r".*\bembed_tokens\..*"),
    ("head", r".*\blm_head\..*"),
    ("norms", r".*norm\.weight"),
)
"""The part a tensor belongs to, by its name; the first that matches."""


def count_in_files(folder: Path) -> Parameters:
    """Read the headers of a published checkpoint, and nothing else of its weights.

    Raises:
        BadInput: There is no weight file, one is damaged, or a tensor belongs to no known part.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder}: no *.safetensors in it; download the model again")
    counts: Counter[str] = Counter()
    for file in files:
        for name, size in _tensors(file):
            counts[_part(name, file)] += size
    return Parameters(**counts)


def count_by_shape(shape: ModelShape) -> Parameters:
    """What a checkpoint of this shape holds."""
    feed_forward = sum(width * out for width, out in shape.stacks) * shape.layers
    embedding = shape.vocabulary * shape.hidden
    return Parameters(
        experts=feed_forward * shape.experts,
        attention=sum(width * out for width, out in shape.projections) * shape.layers,
        mlp=0 if shape.experts else feed_forward,
        embedding=embedding,
        head=0 if shape.tied else embedding,
        vision=_vision_parameters(shape.vision),
        router=shape.experts * shape.hidden * shape.layers,
        norms=(2 * shape.hidden + 2 * shape.head_dim) * shape.layers + shape.hidden,
    )


def _vision_parameters(vision: VisionShape) -> int:
    hidden = vision.hidden
    embedding = hidden * (vision.patch_values + 1 + vision.positions)
    linear = _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    linear += _linear(hidden, vision.intermediate) + _linear(vision.intermediate, hidden)
    block = linear + 2 * 2 * hidden  # two norms with a bias each
    merged = hidden * vision.patches_per_token
    merger = _linear(merged, merged) + _linear(merged, vision.out)
    # The last merger normalises patches, those of DeepStack what is merged already.
    norms = 2 * hidden + vision.deepstack * 2 * merged
    return embedding + vision.depth * block + (1 + vision.deepstack) * merger + norms


def _linear(width: int, out: int) -> int:
    return width * out + out


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    header = _header(file)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        yield name, math.prod(entry["shape"])


def _header(file: Path) -> dict[str, Any]:
    """Eight bytes with its length, then JSON."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = stream.read(length) if length <= LONGEST_HEADER else b""
    try:
        header = json.loads(text)
    except ValueError:
        raise BadInput(f"{file}: no safetensors header; download the model again") from None
    if not isinstance(header, dict):
        raise BadInput(f"{file}: its header is no table of tensors; download the model again")
    return header


def _part(name: str, file: Path) -> str:
    for part, pattern in PARTS:
        if re.fullmatch(pattern, name):
            return part
    raise BadInput(f"{file}: {name}: a tensor of no known part of a Qwen3-VL model; it cannot be planned")
