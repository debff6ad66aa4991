"""Load the base in NF4, attach LoRA, and prove what is quantised and what is trainable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import bitsandbytes
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.activations import SiLUActivation

from pipelines.errors import TrainingFailed
from training import quantizer
from training.experts import STACKS, ExpertLora
from training.layers.decoder import use_fused_decoder
from training.layers.lora import LoraLinear
from training.layers.nf4 import PackedStack
from training.layers.vision import use_fused_vision
from training.quantizer import NF4Config

Targets = Literal["attention", "attention+experts", "attention+experts+merger"]
Adapted = LoraLinear | ExpertLora

ATTENTION = r".*\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
"""Of the language model only: a plain list of names would also hit the vision tower."""

MLP = r".*\.layers\.\d+\.mlp\.(gate|up|down)_proj"
"""What stands in the place of experts where the model is dense."""

MERGER = r".*\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"
"""What turns patches into visual tokens; merged before it is served, since vLLM takes no adapter there."""

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
    quantizer.register()
    config = AutoConfig.from_pretrained(path)
    visual = hasattr(config, "vision_config")
    options = {"experts_implementation": quantizer.NAME} if hasattr(config.get_text_config(), "num_experts") else {}
    model = (AutoModelForImageTextToText if visual else AutoModelForCausalLM).from_pretrained(
        path,
        dtype=dtype,
        device_map={"": device},
        quantization_config=NF4Config(
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "lm_head"],  # `visual` matches nothing; a list drops the default
        ),
        **options,
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # bitsandbytes 0.50 repacks a layer on its first forward pass without gradient, for good, for a kernel
            # that has no backward: training after an evaluation would lose the gradient through it, silently.
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.config.use_cache = model.config.get_text_config().use_cache = False
    prove_quantized(model)
    use_fused_decoder(model)
    if visual:
        use_fused_vision(model)
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
    pattern = linear_pattern(targets)
    adapted: dict[str, Adapted] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name):
            parent, _, leaf = name.rpartition(".")
            adapted[name] = LoraLinear(module, rank, scale)
            model.get_submodule(parent).register_module(leaf, adapted[name])
        elif targets != "attention" and isinstance(module, PackedStack):
            parent, _, leaf = name.rpartition(".")
            adapted[name] = ExpertLora(module.shape, rank, scale, module.packed.device)
            model.get_submodule(parent).register_module(leaf.replace("_proj", "_lora"), adapted[name])
    prove_trainable(model, adapted, targets)
    return adapted


def linear_pattern(targets: Targets, *, mlp: bool = True) -> str:
    """Matches the names of the linear layers that get an update; without `mlp`, of a mixture of experts only."""
    parts = [ATTENTION]
    if targets != "attention" and mlp:
        parts.append(MLP)
    if targets.endswith("merger"):
        parts.append(MERGER)
    return f"({'|'.join(parts)})"


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
    wanted = _expected_targets(model, targets)
    if len(adapted) != wanted:
        raise TrainingFailed(
            f"{targets}: {len(adapted)} targets, and this model should have {wanted}; "
            f"found {', '.join(sorted(adapted)[:8]) or 'none'}"
        )


def _expected_targets(model: PreTrainedModel, targets: Targets) -> int:
    """By the model's config: so that a renamed module cannot be passed over."""
    text = model.config.get_text_config()
    mixture = any(isinstance(module, PackedStack) for module in model.modules())
    per_layer = 4 if targets == "attention" else 4 + (len(STACKS) if mixture else 3)
    mergers = 1 + len(model.config.vision_config.deepstack_visual_indexes) if targets.endswith("merger") else 0
    return int(per_layer * text.num_hidden_layers + 2 * mergers)


def _prove_experts(name: str, module: nn.Module) -> None:
    if not isinstance(module.act_fn, SiLUActivation):
        raise TrainingFailed(f"{name} has {type(module.act_fn).__name__}; training/experts.py knows SwiGLU only")
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
