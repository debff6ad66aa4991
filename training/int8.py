"""Rounding as vLLM serves it: compressed-tensors, symmetric, a scale for each output channel or group of its inputs.

Which layers it concerns, the arithmetic, and how the result is stored. `int-quantized` keeps int8 as it is;
`pack-quantized` keeps several weights in each int32, first weight in the lowest bits, offset to be unsigned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import SCHEMES, Scheme

IGNORE = ("re:.*lm_head", "re:.*visual.*", r"re:.*mlp\.gate$", "re:.*embed_tokens")
"""Modules left in bf16, as vLLM matches them: head, vision tower, router, embeddings."""

QUANTIZED = re.compile(
    r"(?!.*visual).*layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(experts\.\d+\.)?(gate|up|down)_proj)\.weight"
)
"""Weights that are rounded: attention, MLP and experts of the language model."""

KEPT = re.compile(r".*(norm|layernorm|q_norm|k_norm)\.weight|.*\.bias")

SMALLEST = torch.finfo(torch.bfloat16).tiny
"""The scale of a row of zeros: finite and positive, as engines want it."""


@dataclass(frozen=True)
class Rounded:
    """A rounded matrix."""

    steps: torch.Tensor
    """int8 [out, in]."""

    scale: torch.Tensor
    """bf16 [out, groups]."""

    def dequantized(self) -> torch.Tensor:
        """What an engine computes with: fp32 [out, in]."""
        out, width = self.steps.shape
        grouped = self.steps.view(out, self.scale.shape[1], -1).float() * self.scale.float().unsqueeze(2)
        return grouped.view(out, width)


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is rounded.

    Raises:
        ExportRejected: vLLM would take it for rounded by its name, and it is none of the layers known here.
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


def packed_name(name: str) -> str:
    """The tensor that holds a weight's steps, several in an int32."""
    return f"{name}_packed"


def shape_name(name: str) -> str:
    """The tensor that holds a packed weight's own shape."""
    return f"{name}_shape"


def groups_of(name: str, width: int, scheme: Scheme) -> int:
    """Scales of one row.

    Raises:
        ExportRejected: The row is no multiple of the group.
    """
    size = scheme.group or width
    if width % size:
        raise ExportRejected(
            f"{name}: {width} inputs do not divide into groups of {size}; set export.group_size to one that fits, or "
            f"export.scheme to int8_w8a8, which has no groups"
        )
    return width // size


def highest(bits: int) -> int:
    """The largest step; the smallest is one further from zero."""
    return int(2 ** (bits - 1) - 1)


def scale_of(largest: torch.Tensor, bits: int) -> torch.Tensor:
    """The bf16 scale for a largest magnitude: over half the number of steps, as compressed-tensors computes it."""
    return (largest.float() / (highest(bits) + 0.5)).to(torch.bfloat16).clamp_min(SMALLEST)


def quantize(weight: torch.Tensor, scheme: Scheme = SCHEMES["int8_w8a8"]) -> Rounded:
    """Round each row, or each group of its inputs, to steps of its own.

    Args:
        weight: [out, in], finite, on any device.
        scheme: One that rounds; its groups divide `in`.
    """
    assert scheme.bits
    out, width = weight.shape
    rows = weight.float().view(out, width // (scheme.group or width), -1)
    top = highest(scheme.bits)
    scale = scale_of(rows.abs().amax(2), scheme.bits)
    steps = rows.div(scale.float().unsqueeze(2)).round_().clamp_(-top - 1, top)
    return Rounded(steps.to(torch.int8).view(out, width), scale)


def pack(steps: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 [out, in] as int32 [out, in * bits / 32]."""
    unsigned = (steps.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return unsigned.contiguous().view(torch.int32)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack`."""
    unsigned = packed.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=2).flatten(1)
    return (unsigned.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def relative_error(weight: torch.Tensor, rounded: Rounded) -> float:
    """||dequantised - weight|| / ||weight||; 0 for a weight of zeros."""
    exact = weight.float()
    norm = float(exact.norm())
    return float((rounded.dequantized() - exact).norm()) / norm if norm else 0.0


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """The section of config.json that tells vLLM what it finds."""
    form = "int-quantized" if scheme.int8_activations else "pack-quantized"
    rounding: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": True}
    strategy = {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    group = {
        "targets": ["Linear"],
        "format": form,
        "weights": {**rounding, **strategy, "dynamic": False},
        "input_activations": {**rounding, "strategy": "token", "dynamic": True} if scheme.int8_activations else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": list(IGNORE),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "config_groups": {"group_0": group},
    }
