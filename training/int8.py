"""INT8 as vLLM serves it: compressed-tensors W8A8, one scale per output channel, activations scaled at run time."""

from __future__ import annotations

import re

import torch

from pipelines.errors import ExportRejected

IGNORE = ("re:.*lm_head", "re:.*visual.*", r"re:.*mlp\.gate$", "re:.*embed_tokens")
"""Modules left in bf16, as vLLM matches them: head, vision tower, router, embeddings."""

QUANTIZED = re.compile(
    r"(?!.*visual).*layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+\.)?(gate|up|down)_proj)\.weight"
)
"""Weights that become int8: attention, MLP and experts of the language model."""

KEPT = re.compile(r".*(norm|layernorm|q_norm|k_norm)\.weight|.*\.bias")


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor becomes int8.

    Raises:
        ExportRejected: vLLM would take it for int8 by its name, and it is none of the layers known here.
    """
    module = name.removesuffix(".weight")
    if any(re.match(pattern.removeprefix("re:"), module) for pattern in IGNORE) or KEPT.fullmatch(name):
        return False
    if not QUANTIZED.fullmatch(name) or len(shape) != 2:
        raise ExportRejected(f"{name} {list(shape)}: unknown layer; it can be neither quantised nor left alone safely")
    return True


def scale_name(name: str) -> str:
    """The tensor that holds a weight's scales."""
    return f"{name}_scale"


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to -128..127 steps of its own.

    Args:
        weight: [out, in], bf16 or fp32, finite.

    Returns:
        int8 [out, in] and bf16 [out, 1]; the scale is the row's largest magnitude over 127.5.
    """
    rows = weight.float()
    # A row of zeros gets the smallest normal scale: finite and positive, as engines want it.
    scale = (rows.abs().amax(1, keepdim=True) / 127.5).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
    return rows.div(scale.float()).round_().clamp_(-128, 127).to(torch.int8), scale


def relative_error(weight: torch.Tensor, steps: torch.Tensor, scale: torch.Tensor) -> float:
    """||dequantised - weight|| / ||weight||; 0 for a weight of zeros."""
    exact = weight.float()
    norm = float(exact.norm())
    return float((steps.float() * scale.float() - exact).norm()) / norm if norm else 0.0


def quantization_config() -> dict[str, object]:
    """The section of config.json that tells vLLM what it finds."""
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "format": "int-quantized",
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": {**int8, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": list(IGNORE),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "config_groups": {"group_0": group},
    }
