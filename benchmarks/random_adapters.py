"""Writes adapters of attention and experts with random weights for a base of any size, as vLLM serves them.

Size and speed are those of trained ones, and each seed answers differently; quality is not. Of the base only its config
is read, so that it may be in any scheme.

usage: python -m benchmarks.random_adapters BASE FOLDER... [--rank 16]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from training.merge import LoraReader
from training.model import linear_pattern
from training.peft_layout import CONFIG, WEIGHTS, peft_name
from training.served_adapter import export_adapter
from training.weights.layout import expert_shape

LINEAR = re.compile(r".*language_model\..*\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
STACKS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
SPREAD = 0.05
"""Standard deviation of B; that of A keeps the size of its input. Enough to be seen beside weights of 0.02."""


def main() -> None:
    """Write one for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    for seed, folder in enumerate(options.folders, 1):
        write_adapter(options.base, folder, options.rank, seed)


def write_adapter(base: Path, folder: Path, rank: int, seed: int) -> None:
    """Write one adapter.

    Args:
        base: Folder with its config.json.
        folder: Whole or not there afterwards.
        rank: Of every update; alpha is twice as much.
        seed: Of its numbers.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tensors = dict(_tensors(base, rank))
    experts = expert_shape(json.loads((base / "config.json").read_text()))
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": linear_pattern("attention+experts", mlp=experts is None),
        "target_parameters": list(STACKS) if experts else None,
    }
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        save_file(tensors, Path(place) / WEIGHTS, {"format": "pt"})
        (Path(place) / CONFIG).write_text(json.dumps(options))
        served = export_adapter(LoraReader(Path(place), experts), base, folder, {})
    print(f"{served.path}: rank {rank}, {served.tensors} tensors, {served.size_bytes / 1e9:.2f} GB")


def _tensors(base: Path, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    """By PEFT's names, in bf16."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(base))
    for name, weight in model.state_dict().items():
        if LINEAR.fullmatch(name):
            (out, width), count = weight.shape, 1
        elif name.endswith(STACKS):
            count, out, width = weight.shape
        else:
            continue
        key = peft_name(name.removesuffix(".weight"))
        yield f"{key}.lora_A.weight", _random(count * rank, width, spread=width**-0.5)
        yield f"{key}.lora_B.weight", _random(out, rank * count, spread=SPREAD)


def _random(rows: int, columns: int, *, spread: float) -> torch.Tensor:
    return torch.randn(rows, columns).mul_(spread).to(torch.bfloat16)


if __name__ == "__main__":
    main()
