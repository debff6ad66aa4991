"""A LoRA adapter on disk, in PEFT's own layout: stock PEFT loads and merges it, vLLM serves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from pipelines.system.durable import commit, partial_of
from pipelines.system.manifest import write_manifest
from training.experts import ExpertLora
from training.model import Adapted, Targets, linear_pattern
from training.peft_layout import NESTED, WEIGHTS, pack_experts, peft_name, unpack_experts


@dataclass(frozen=True)
class LoraShape:
    """What PEFT has to know of an adapter."""

    targets: Targets
    rank: int
    alpha: float


def save_adapter(adapted: Mapping[str, Adapted], shape: LoraShape, base_digest: str, folder: Path) -> str:
    """Write an adapter so that it is whole or not there; returns the digest of its manifest."""
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    write_weights(adapted, partial)
    peft_config(adapted, shape).save_pretrained(str(partial))
    digest = write_manifest(partial, base=base_digest)
    commit(partial, folder)
    return digest


def write_weights(adapted: Mapping[str, Adapted], folder: Path) -> None:
    """Write the tensors alone, in fp32."""
    tensors = dict(_packed(adapted))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)


@torch.no_grad()
def read_weights(adapted: Mapping[str, Adapted], folder: Path) -> None:
    """Fill modules with what `write_weights` wrote, bit for bit."""
    tensors = load_file(folder / WEIGHTS)
    for name, module in adapted.items():
        key = peft_name(name)
        a, b = tensors.pop(f"{key}.lora_A.weight"), tensors.pop(f"{key}.lora_B.weight")
        if isinstance(module, ExpertLora):
            a, b = unpack_experts(a, b, len(module.a))
        module.a.copy_(a)
        module.b.copy_(b)
    assert not tensors, sorted(tensors)


def peft_config(adapted: Mapping[str, Adapted], shape: LoraShape) -> LoraConfig:
    """The config that makes PEFT build the same adapter."""
    stacks = sorted({name.rpartition(".")[2] for name, module in adapted.items() if isinstance(module, ExpertLora)})
    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]  # PEFT divides it and takes any number
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=linear_pattern(shape.targets, mlp=not stacks),
        # In this order: PEFT nests the second around the first.
        target_parameters=[f"mlp.experts.{stack}" for stack in NESTED if stack in stacks] or None,
        inference_mode=True,
    )


def _packed(adapted: Mapping[str, Adapted]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in adapted.items():
        a, b = module.a.detach(), module.b.detach()
        if isinstance(module, ExpertLora):
            a, b = pack_experts(a, b)
        yield f"{peft_name(name)}.lora_A.weight", a.cpu().contiguous()
        yield f"{peft_name(name)}.lora_B.weight", b.cpu().contiguous()
