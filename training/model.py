"""Load the base in NF4, attach LoRA, and prove what is quantised and what is trainable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import bitsandbytes
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from pipelines.errors import TrainingFailed
from training import experts
from training.attention import use_packed_vision_attention
from training.experts import STACKS, ExpertLora, NF4Config, PackedStack
from training.lora import LoraLinear

Targets = Literal["attention", "attention+experts"]
Adapted = LoraLinear | ExpertLora

ATTENTION = r".*language_model.*\.self_attn\.(q|k|v|o)_proj"
"""Of the language model only: a plain list of names would also hit the vision tower."""

MLP = r".*language_model.*\.mlp\.(gate|up|down)_proj"
"""What stands in the place of experts where the model is dense."""

PLAIN = ("visual", "lm_head", "mlp.gate.", "embed_tokens")
"""Parts of names that stay in the compute type: vision tower, head, router, embeddings."""

BLOCK = 64
"""Weights that share a scale in NF4."""

EXPERT_BYTES = 0.6
"""Most that an expert parameter may take. bf16 takes 2; an upstream change that brings it back must not go unseen."""


def load_quantized(path: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The base with attention, MLP and experts in NF4, everything else in the compute type, nothing trainable.

    Args:
        path: A published checkpoint.
        dtype: Compute type.
        device: `cpu` or `cuda`.

    Raises:
        TrainingFailed: Something is not quantised that should be, or is that should not; names the tensor.
    """
    experts.register()
    quantization = NF4Config(
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.visual", "lm_head"],  # `visual` alone matches nothing; a list drops the default
    )
    implementation = {"experts_implementation": experts.NAME} if _is_mixture(path) else {}
    model = AutoModelForImageTextToText.from_pretrained(
        path, quantization_config=quantization, dtype=dtype, device_map={"": device}, **implementation
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # bitsandbytes 0.50 repacks a layer on its first forward pass without gradient, for good, for a kernel
            # that has no backward: training after an evaluation would lose the gradient through it, silently.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.config.use_cache = False
    use_packed_vision_attention(model)
    prove_quantized(model)
    return model


def attach_lora(model: PreTrainedModel, targets: Targets, rank: int, alpha: float, seed: int) -> dict[str, Adapted]:
    """Put LoRA on the targets; the seed is set first, so that a run can be repeated.

    Returns:
        By module name, or for a stack of experts by parameter name: what holds `a` and `b`.

    Raises:
        TrainingFailed: There is no target, or something else is trainable.
    """
    torch.manual_seed(seed)
    scale = alpha / rank
    pattern = ATTENTION if targets == "attention" else f"({ATTENTION}|{MLP})"
    adapted: dict[str, Adapted] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name):
            parent, _, leaf = name.rpartition(".")
            adapted[name] = LoraLinear(module, rank, scale)
            model.get_submodule(parent).register_module(leaf, adapted[name])
        elif targets == "attention+experts" and isinstance(module, PackedStack):
            parent, _, leaf = name.rpartition(".")
            adapted[name] = ExpertLora(module.shape, rank, scale, module.packed.device)
            model.get_submodule(parent).register_module(leaf.replace("_proj", "_lora"), adapted[name])
    prove_trainable(model, adapted, targets)
    return adapted


def prove_quantized(model: PreTrainedModel) -> None:
    """Check every tensor of a loaded model.

    Raises:
        TrainingFailed: Names the first tensor that is not what it should be.
    """
    for name, parameter in model.named_parameters():
        if any(part in f"{name}." for part in PLAIN) and not parameter.dtype.is_floating_point:
            raise TrainingFailed(f"{name} is quantised to {parameter.dtype}; it must stay in the compute type")
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            _prove_experts(name, module)
        plain = isinstance(module, nn.Linear) and not isinstance(module, bitsandbytes.nn.Linear4bit)
        if plain and re.fullmatch(f"({ATTENTION}|{MLP})", name):
            raise TrainingFailed(f"{name}.weight is {module.weight.dtype}, not NF4; it would not fit the card")
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.in_features % BLOCK:
            raise TrainingFailed(
                f"{name}: {module.in_features} inputs are no multiple of {BLOCK}, and bitsandbytes 0.50 unpacks such a "
                f"layer wrongly on a CPU; use a model with other widths"
            )


def prove_trainable(model: PreTrainedModel, adapted: dict[str, Adapted], targets: Targets) -> None:
    """Check that the intended tensors and no others get gradients.

    Raises:
        TrainingFailed: Names what is missing, or what should not be there.
    """
    intended = {id(p) for module in adapted.values() for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (id(parameter) in intended):
            raise TrainingFailed(f"{name}: requires_grad is {parameter.requires_grad}; only LoRA weights may have it")
    text = model.config.get_text_config()
    mixture = any(isinstance(module, PackedStack) for module in model.modules())
    per_layer = 4 if targets == "attention" else 4 + (len(STACKS) if mixture else 3)
    if len(adapted) != per_layer * text.num_hidden_layers:
        raise TrainingFailed(
            f"{targets}: {len(adapted)} targets in {text.num_hidden_layers} layers, expected {per_layer} in each; "
            f"found {', '.join(sorted(adapted)[:8]) or 'none'}"
        )


def _prove_experts(name: str, module: nn.Module) -> None:
    for leaf in STACKS:
        stack = getattr(module, leaf)
        if not isinstance(stack, PackedStack):
            raise TrainingFailed(
                f"{name}.{leaf} is {stack.dtype}, not NF4: {stack.nbytes / 2**30:.2f} GiB that would not fit the card"
            )
        if stack.bytes_per_parameter() > EXPERT_BYTES:
            raise TrainingFailed(
                f"{name}.{leaf} takes {stack.bytes_per_parameter():.2f} bytes a parameter, {EXPERT_BYTES} are allowed"
            )


def _is_mixture(path: Path) -> bool:
    text = AutoConfig.from_pretrained(path).get_text_config()
    return hasattr(text, "num_experts")
