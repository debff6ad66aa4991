"""How PEFT lays an adapter out in its files. Light: what only merges needs no PEFT.

PEFT packs the experts of one stack into two matrices: A with the experts slowest, [experts * rank, in], and B with the
experts fastest, [out, rank * experts]. It nests one wrapper per stack: gate_up below `experts.base_layer`, down below
`experts`.
"""

from __future__ import annotations

import torch

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NESTED = {"gate_up_proj": "base_layer.", "down_proj": ""}
"""Where PEFT keeps the update of each stack, below the experts module."""


def peft_name(name: str) -> str:
    """PEFT's name of the update of a module, or of a stack of experts."""
    parent, _, leaf = name.rpartition(".")
    if parent.endswith(".experts"):
        return f"base_model.model.{parent}.{NESTED[leaf]}".rstrip(".")
    return f"base_model.model.{name}"


def pack_experts(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[experts, rank, in] and [experts, out, rank] as PEFT has them: [experts * rank, in] and [out, rank * experts]."""
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)


def unpack_experts(a: torch.Tensor, b: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `pack_experts`."""
    return a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1)
