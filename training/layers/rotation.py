"""Norm and rotary embedding of attention heads as one operation; the norms' weights get no gradient."""

from __future__ import annotations

from typing import Any

import torch

from training.kernels.choose import kernels


class Rotate(torch.autograd.Function):
    """The rotary embedding of heads, [tokens, heads, size]; angles as in `kernels.plain.norm_rotate`."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate."""
        ctx.save_for_backward(cos, sin)
        return kernels(heads.device).norm_rotate(heads, None, 0.0, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Rotate back."""
        cos, sin = ctx.saved_tensors
        out = torch.empty_like(gradients[0])
        kernels(out.device).norm_rotate_backward(gradients[0], out, None, 0.0, cos, sin, out)
        return out, None, None


class Heads(torch.autograd.Function):
    """Queries and keys with their norms and places, and values, out of one product."""

    @staticmethod
    def forward(
        ctx: Any, projected: torch.Tensor, norms: tuple[Any, Any], queries: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Split, norm and rotate.

        Args:
            projected: [tokens, heads, size]: queries, then as many keys as values.
            norms: Of queries and keys, with `weight` and `variance_epsilon`.
            queries: How many of the heads are.
            cos: [tokens, size], of the angles.
            sin: Likewise.

        Returns:
            Queries, keys and values, [tokens, heads, size] each.
        """
        ctx.save_for_backward(projected, cos, sin)
        ctx.norms, ctx.queries = norms, queries
        query, key, value = _split(projected, queries)
        offered = kernels(projected.device)
        rotated = [
            offered.norm_rotate(heads, norm.weight, norm.variance_epsilon, cos, sin)
            for heads, norm in zip((query, key), norms, strict=True)
        ]
        return (*rotated, value.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        """Back through both, into one gradient."""
        projected, cos, sin = ctx.saved_tensors
        out = torch.empty_like(projected)
        places = zip(gradients, _split(projected, ctx.queries), _split(out, ctx.queries), ctx.norms, strict=False)
        for gradient, heads, target, norm in places:
            kernels(out.device).norm_rotate_backward(
                gradient.contiguous(), heads, norm.weight, norm.variance_epsilon, cos, sin, target
            )
        _split(out, ctx.queries)[2].copy_(gradients[2])
        return out, None, None, None, None


def _split(heads: torch.Tensor, queries: int) -> tuple[torch.Tensor, ...]:
    keys = (heads.shape[1] - queries) // 2
    return heads.split([queries, keys, keys], dim=1)
