"""Writes a checkpoint of the exact shape of Qwen3-VL-30B-A3B with random weights, in the published layout.

Speed and memory are those of the real model; quality is not. 48 layers take 62 GB, 12 take 17 GB.

usage: python benchmarks/true_shape.py FOLDER [--layers 48]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from training.builtin.processor import build_processor

TEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def write_config(folder: Path, layers: int = 48, *, whole_vocabulary: bool = False) -> Qwen3VLMoeConfig:
    """Write everything but the weights.

    Args:
        whole_vocabulary: Give a text to each id that the model may answer with; the built-in tokenizer knows a few
            hundred.
    """
    folder.mkdir(parents=True)
    build_processor().save_pretrained(folder)
    if whole_vocabulary:
        _name_every_token(folder / "tokenizer.json")
    config = _config(layers, AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": [_ARCHITECTURE]}, default=str))
    return config


def _name_every_token(tokenizer: Path) -> None:
    known = json.loads(tokenizer.read_text())
    vocabulary = known["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in known["added_tokens"])}
    vocabulary |= {f"w{number}": number for number in range(TEXT["vocab_size"]) if number not in taken}
    tokenizer.write_text(json.dumps(known))


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write the checkpoint, several files at a time."""
    shapes = published_shapes(write_config(folder, layers))
    big = [name for name in shapes if ".experts." in name]
    # safetensors refuses tensors that share memory, so a file has one stack of each kind.
    files = [[name for name in shapes if name not in set(big)], *(big[i : i + 2] for i in range(0, len(big), 2))]
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: _write(folder / pair[0], pair[1], shapes), zip(names, files, strict=True)))
    index = {name: file for file, group in zip(names, files, strict=True) for name in group}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def published_shapes(config: Qwen3VLMoeConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors as transformers has them; on disk, stacks of experts lie the other way round."""
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in Qwen3VLMoeForConditionalGeneration(config).state_dict().items()}


_ARCHITECTURE = "Qwen3VLMoeForConditionalGeneration"


def _config(layers: int, ids: Any) -> Qwen3VLMoeConfig:
    """The marks are those of the tokenizer."""
    marks = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    marks |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return Qwen3VLMoeConfig(
        text_config=TEXT | {"num_hidden_layers": layers},
        vision_config=VISION,
        tie_word_embeddings=False,
        dtype="bfloat16",
        **{field: ids(mark) for field, mark in marks.items()},
    )


def on_disk(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Stacks of experts are published as [experts, in, out]."""
    return (shape[0], shape[2], shape[1]) if ".experts." in name else shape


def _write(file: Path, names: list[str], shapes: dict[str, tuple[int, ...]]) -> None:
    save_file(dict(_tensors(names, shapes)), file, metadata={"format": "pt"})


def _tensors(names: list[str], shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        shape = on_disk(name, shapes[name])
        if len(shape) == 1 and name.endswith("weight"):  # of a norm
            yield name, torch.ones(shape, dtype=torch.bfloat16)
        elif ".experts." in name:  # alone in its file with this shape
            yield name, _random(shape)
        else:
            yield name, _random(shape).clone()


@cache
def _random(shape: tuple[int, ...]) -> torch.Tensor:
    """The same for all layers: making 31 billion random numbers would take longer than all that is measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    options = parser.parse_args()
    write_checkpoint(options.folder, options.layers)
