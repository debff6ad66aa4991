"""LoRA on plain linear layers: the frozen layer, and a low-rank update beside it in fp32."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class LoraLinear(nn.Module):
    """`base(x) + scale * B(A(x))`, with only A and B trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        """Start as no update at all.

        Args:
            base: The frozen layer, quantised or not.
            rank: Of the update.
            scale: Factor of the update.
        """
        super().__init__()
        self.base, self.scale = base, scale
        device = base.weight.device
        bound = math.sqrt(1 / base.in_features)
        # On the CPU first, so that a seed means the same on every device.
        self.a = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound).to(device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """As the layer it wraps: [..., in] to [..., out]."""
        inner = functional.linear(tokens, self.a.to(tokens.dtype))
        return self.base(tokens) + self.scale * functional.linear(inner, self.b.to(tokens.dtype))
