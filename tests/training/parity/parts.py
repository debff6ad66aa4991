"""Exported folders made without the exporter: what a comparison is told must not depend on who wrote the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

from pipelines.schemes import Name, scheme_of
from training.int8 import quantization_config
from training.parity.nf4 import is_packed
from training.parity.variants import Merged, Original

GROUP = 32
"""Inputs that share a scale: the tiny experts are 96 wide."""

Tensors = dict[str, torch.Tensor]


def write_merged(base: Path, adapter: Path | None, folder: Path) -> Path:
    """The merged model in bf16, a matrix for each projection of each expert."""
    folder.mkdir(parents=True)
    original = Original(base, adapter, "cpu")
    merged = Merged(original)
    tensors = {name: merged.tensor(name).to(original.stored(name).dtype).contiguous() for name in original.planned}
    save_file(tensors, folder / "model.safetensors")
    for file in base.iterdir():
        if file.suffix in {".json", ".jinja"} and file.name != "manifest.json":
            shutil.copyfile(file, folder / file.name)
    return folder


def write_quantized(merged: Path, folder: Path, name: Name) -> Path:
    """The same in a scheme."""
    shutil.copytree(merged, folder)
    scheme = scheme_of(name, GROUP)
    assert scheme.bits
    tensors: Tensors = {}
    for key, tensor in load_file(merged / "model.safetensors").items():
        if is_packed(key):
            tensors |= _quantized(key, tensor, scheme.bits, scheme.group or tensor.shape[1])
        else:
            tensors[key] = tensor
    if scheme.int8_activations:
        for key in [key for key in tensors if key.endswith("_packed")]:
            shape = tensors.pop(key.replace("_packed", "_shape"))
            tensors[key.removesuffix("_packed")] = tensors.pop(key).view(torch.int8).view(*shape.tolist()) ^ -128
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization_config(scheme)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(folder: Path, how: Callable[[Tensors], None]) -> None:
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors")


def fused(tensors: Tensors, like: Tensors) -> Tensors:
    """Exported tensors as transformers has them: the matrices of all experts in a stack, gate above up."""
    found = {name: tensor.float() for name, tensor in tensors.items() if name in like}
    for name in like.keys() - found.keys():
        experts, _, leaf = name.rpartition(".")
        parts = ("gate", "up") if leaf == "gate_up_proj" else ("down",)
        matrices = [
            torch.cat([tensors[f"{experts}.{expert}.{part}_proj.weight"].float() for part in parts])
            for expert in range(len(like[name]))
        ]
        found[name] = torch.stack(matrices)
    return found


def _quantized(name: str, weight: torch.Tensor, bits: int, group: int) -> Tensors:
    """compressed-tensors' own rounding and packing."""
    grouped = weight.float().unflatten(1, (-1, group))
    half = 2 ** (bits - 1)
    scale = (grouped.abs().amax(-1) / (half - 0.5)).to(torch.bfloat16)
    steps = (grouped / scale.float().unsqueeze(-1)).round().clamp(-half, half - 1).flatten(1).to(torch.int8)
    shape = torch.tensor(steps.shape)
    return {f"{name}_packed": pack_to_int32(steps, bits), f"{name}_scale": scale, f"{name}_shape": shape}
