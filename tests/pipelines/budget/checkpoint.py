"""A checkpoint on disk that has headers and no weights: all that a plan reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from pipelines.budget.base import SHAPES

QWEN = "Qwen/Qwen3-VL-30B-A3B-Instruct"
TINY = "builtin/tiny-qwen3-vl-moe"


def write_header(file: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file, its data left out."""
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)


def write_checkpoint(folder: Path, name: str = TINY) -> Path:
    """A folder with the config.json of a shape, and in two files a tensor of every part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text((SHAPES / f"{name}.json").read_text())
    layer = "model.language_model.layers.0"
    write_header(
        folder / "model-00001-of-00002.safetensors",
        {
            "model.language_model.embed_tokens.weight": (448, 128),
            "lm_head.weight": (448, 128),
            "model.language_model.norm.weight": (128,),
            "model.visual.blocks.0.norm1.weight": (96,),
            "model.visual.merger.linear_fc1.bias": (384,),
        },
    )
    write_header(
        folder / "model-00002-of-00002.safetensors",
        {
            f"{layer}.self_attn.q_proj.weight": (128, 128),
            f"{layer}.self_attn.q_norm.weight": (32,),
            f"{layer}.input_layernorm.weight": (128,),
            f"{layer}.mlp.gate.weight": (6, 128),
            f"{layer}.mlp.experts.gate_up_proj": (6, 128, 192),
            f"{layer}.mlp.experts.down_proj": (6, 96, 128),
        },
    )
    return folder
