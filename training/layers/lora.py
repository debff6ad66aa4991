"""LoRA on linear layers: the frozen layer, and a low-rank update beside it in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from training.layers.nf4 import unpack_linear


class LoraLinear(nn.Module):
    """`base(x) + scale * B(A(x))`, with only A and B trained."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        """Start as no update at all.

        Args:
            base: The frozen layer, in NF4 or not.
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
        return products([self], tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])


def products(layers: Sequence[nn.Module], tokens: torch.Tensor) -> torch.Tensor:
    """What several layers make of the same tokens, side by side, as one product.

    Args:
        layers: LoraLinear, or frozen linear layers in NF4 or not.
        tokens: [tokens, in].

    Returns:
        [tokens, sum of the outs].
    """
    updates = [p for layer in layers if isinstance(layer, LoraLinear) for p in (layer.a, layer.b)]
    out: torch.Tensor = _Products.apply(tokens, layers, *updates)
    return out


class _Products(torch.autograd.Function):
    """Base and updates, added up in place; the weights are written out again for the way back."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, layers: Sequence[nn.Module], *updates: torch.Tensor) -> torch.Tensor:
        compute = tokens.dtype
        adapted = [layer for layer in layers if isinstance(layer, LoraLinear)]
        bs = [torch.mul(x.b, x.scale, out=torch.empty_like(x.b, dtype=compute)) for x in adapted]
        ctx.layers, ctx.adapted = layers, adapted
        out = tokens @ _weights(layers, compute).T
        for layer, part in zip(layers, _parts(out, layers), strict=True):
            if (bias := _base(layer).bias) is not None:
                part.add_(bias)
        if not adapted:
            ctx.save_for_backward()
            return out
        a = torch.cat(updates[::2]).to(compute)
        inner = tokens @ a.T
        ctx.save_for_backward(tokens, inner, a, *bs)
        for part, narrow, b in zip(_adapted_parts(out, layers), _narrow(inner, adapted), bs, strict=True):
            part.addmm_(narrow, b.T)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        of_tokens = gradient @ _weights(ctx.layers, gradient.dtype)
        if not ctx.adapted:
            return of_tokens, None
        tokens, inner, a, *bs = ctx.saved_tensors
        of_inner, of_bs = torch.empty_like(inner), []
        parts = _adapted_parts(gradient, ctx.layers)
        narrows = zip(_narrow(of_inner, ctx.adapted), _narrow(inner, ctx.adapted), strict=True)
        for layer, part, b, (of_narrow, narrow) in zip(ctx.adapted, parts, bs, narrows, strict=True):
            torch.mm(part, b, out=of_narrow)
            of_bs.append(torch.mul(part.T @ narrow, layer.scale, out=torch.empty_like(layer.b)))
        of_tokens.addmm_(of_inner, a)
        of_as = (of_inner.T @ tokens).split([len(layer.a) for layer in ctx.adapted])
        return of_tokens, None, *(of_update for pair in zip(of_as, of_bs, strict=True) for of_update in pair)


def _base(layer: nn.Module) -> nn.Linear:
    base = layer.base if isinstance(layer, LoraLinear) else layer
    assert isinstance(base, nn.Linear)
    return base


def _weights(layers: Sequence[nn.Module], compute: torch.dtype) -> torch.Tensor:
    """[sum of the outs, in]: a transient."""
    bases = [_base(layer) for layer in layers]
    if len(bases) == 1:
        return unpack_linear(bases[0], compute)
    rows = [base.out_features for base in bases]
    weights = torch.empty(sum(rows), bases[0].in_features, dtype=compute, device=bases[0].weight.device)
    for base, part in zip(bases, weights.split(rows), strict=True):
        unpack_linear(base, compute, part)
    return weights


def _parts(rows: torch.Tensor, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
    """The columns of each layer."""
    ends = list(accumulate(_base(layer).out_features for layer in layers))
    return [rows[:, begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _adapted_parts(rows: torch.Tensor, layers: Sequence[nn.Module]) -> list[torch.Tensor]:
    pairs = zip(layers, _parts(rows, layers), strict=True)
    return [part for layer, part in pairs if isinstance(layer, LoraLinear)]


def _narrow(inner: torch.Tensor, adapted: Sequence[LoraLinear]) -> tuple[torch.Tensor, ...]:
    """The columns of each update."""
    return inner.split([len(layer.a) for layer in adapted], dim=1)
