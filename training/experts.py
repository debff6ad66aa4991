"""A mixture of experts whose weights are in NF4, with a low-rank update per expert. The heart of the trainer.

Products need a stack in full, so one stack at a time is written out, and written out again for the backward pass:
autograd holds packed bytes only. The update is never built. Where it takes part in a product it extends the frozen
matrix, so that one grouped product adds both up in its fp32 accumulators:

    [W  sB]     forward:   rows [x | x A'] times [W | sB]'      sB is `scale * b`, A' the transpose of `a`
    [A   .]     backward:  rows [g | g sB] times [W ; A]

The routing weights are applied after the down projection, and their gradient is found before it (see
`kernels.plain.gate_backward`), so the backward pass computes only the first product again.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from training.kernels.choose import kernels
from training.layers.grouped import Routing, grouped_outer, grouped_product, route
from training.layers.nf4 import PackedStack
from training.layers.recompute import recomputing

STACKS = ("gate_up_proj", "down_proj")
"""The fused parameters of an experts module: [experts, out, in] each."""

ALIGNMENT = 16
"""Columns of an update are filled up to a multiple of this, as tensor cores want it."""


class ExpertLora(nn.Module):
    """A low-rank update of every matrix in a stack, in fp32."""

    def __init__(self, shape: torch.Size, rank: int, scale: float, device: torch.device) -> None:
        """Start as no update at all.

        Args:
            shape: [experts, out, in] of the stack.
            rank: Of the update of each expert.
            scale: Factor of the update.
            device: Of the stack.
        """
        super().__init__()
        experts, out, width = shape
        bound = width**-0.5
        self.scale = scale
        # On the CPU first, so that a seed means the same on every device.
        self.a = nn.Parameter(torch.empty(experts, rank, width).uniform_(-bound, bound).to(device))
        self.b = nn.Parameter(torch.zeros(experts, out, rank, device=device))


class Experts(Protocol):
    """What an experts module must have."""

    num_experts: int
    gate_up_proj: PackedStack
    down_proj: PackedStack
    gate_up_lora: ExpertLora | None
    down_lora: ExpertLora | None
    keep: bool
    """Whether the first product is kept for the backward pass instead of computed again."""


def nf4_experts(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The forward pass of an experts module whose stacks are packed; its activation is SwiGLU.

    Args:
        experts: See Experts.
        hidden: [tokens, hidden].
        chosen: [tokens, experts per token], int64: which experts.
        weights: [tokens, experts per token]: how much of each.

    Returns:
        [tokens, hidden].
    """
    updates = [p for lora in (experts.gate_up_lora, experts.down_lora) if lora for p in (lora.a, lora.b)]
    out: torch.Tensor = _Mixture.apply(experts, hidden, chosen, weights, *updates)
    return out


class _Mixture(torch.autograd.Function):
    """All of it, forward and back."""

    @staticmethod
    def forward(
        ctx: Any, experts: Experts, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor,
        *_updates: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        ctx.experts = experts
        if recomputing.get():
            ctx.save_for_backward(hidden, chosen, weights)
            return torch.full_like(hidden, torch.nan)
        routing = route(chosen, experts.num_experts)
        rows, gate_up = _first_product(hidden, routing, Extended(experts.gate_up_proj, experts.gate_up_lora, hidden))
        ctx.save_for_backward(hidden, chosen, weights, *((rows, gate_up) if experts.keep else ()))
        return _second_product(gate_up, routing, weights, Extended(experts.down_proj, experts.down_lora, hidden))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, chosen, weights, *kept = ctx.saved_tensors
        experts = ctx.experts
        routing = route(chosen, experts.num_experts)
        first = Extended(experts.gate_up_proj, experts.gate_up_lora, hidden)
        rows, gate_up = kept or _first_product(hidden, routing, first)
        of_gate_up = first.gradient_rows(len(rows))
        of_weights, of_down_lora = _second_product_backward(
            gradients[0], gate_up, of_gate_up, routing, weights,
            first, Extended(experts.down_proj, experts.down_lora, hidden),
        )  # fmt: skip
        del gate_up
        of_rows = first.product_backward(of_gate_up, routing.ends)
        of_gate_up_lora = first.update_gradients(rows, of_gate_up, routing.ends)
        of_hidden = kernels(hidden.device).gather_sum(of_rows, routing.places, None)
        return None, of_hidden, None, of_weights, *of_gate_up_lora, *of_down_lora


class Extended:
    """A stack written out in full with its update beside and below it, for the time of a few products."""

    def __init__(self, stack: PackedStack, lora: ExpertLora | None, like: torch.Tensor) -> None:
        """Write it out.

        Args:
            stack: [experts, out, in].
            lora: Its update, if it has one.
            like: Has the compute type and the device.
        """
        experts, self.out, self.width = stack.shape
        self.lora = lora
        self.extra = -(-lora.a.shape[1] // ALIGNMENT) * ALIGNMENT if lora else 0
        self.matrices = like.new_empty(experts, self.out + self.extra, self.width + self.extra)
        stack.unpack_into(self.matrices[:, : self.out, : self.width])
        if lora:
            rank = lora.a.shape[1]
            beside, below = self.matrices[:, : self.out, self.width :], self.matrices[:, self.out :, : self.width]
            torch.mul(lora.b.detach(), lora.scale, out=beside[:, :, :rank])
            below[:, :rank] = lora.a.detach()
            if rank < self.extra:
                beside[:, :, rank:] = below[:, rank:] = 0

    @property
    def input_factor(self) -> torch.Tensor | None:
        """What extends a row before the product: [experts, in, narrow]."""
        return self.matrices[:, self.out :, : self.width].mT if self.lora else None

    @property
    def gradient_factor(self) -> torch.Tensor | None:
        """What extends a gradient before the product: [experts, out, narrow]."""
        return self.matrices[:, : self.out, self.width :] if self.lora else None

    def input_rows(self, count: int) -> torch.Tensor:
        """Room for [count, in] rows, extended."""
        return self.matrices.new_empty(count, self.width + self.extra)

    def gradient_rows(self, count: int) -> torch.Tensor:
        """Room for [count, out] gradients, extended."""
        return self.matrices.new_empty(count, self.out + self.extra)

    def product(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """[rows, out] for extended rows."""
        return grouped_product(rows, self.matrices[:, : self.out].mT, ends)

    def product_backward(self, gradients: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """[rows, in] for extended gradients."""
        return grouped_product(gradients, self.matrices[:, :, : self.width], ends)

    def update_gradients(
        self, rows: torch.Tensor, gradients: torch.Tensor, ends: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Gradients of `a` and `b`, or nothing where there is no update.

        Args:
            rows: Extended.
            gradients: Extended.
            ends: See Routing.
            weights: [rows]: how much each row counts; None for all of it.
        """
        if self.lora is None:
            return ()
        rank, scale = self.lora.a.shape[1], self.lora.scale
        inner, of_inner = rows[:, self.width :], gradients[:, self.out :]
        if weights is not None:
            inner, of_inner = inner * weights.unsqueeze(-1), of_inner * weights.unsqueeze(-1)
        of_a = grouped_outer(of_inner, rows[:, : self.width], ends)[:, :rank]
        of_b = grouped_outer(gradients[:, : self.out], inner, ends)[:, :, :rank]
        return of_a, torch.mul(of_b, scale, out=torch.empty_like(self.lora.b))


def _first_product(hidden: torch.Tensor, routing: Routing, first: Extended) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows, extended, and gate and up of each."""
    rows = first.input_rows(len(routing.tokens))
    kernels(hidden.device).gather_extend(hidden, routing.tokens, routing.ends, first.input_factor, rows)
    return rows, first.product(rows, routing.ends)


def _second_product(gate_up: torch.Tensor, routing: Routing, weights: torch.Tensor, second: Extended) -> torch.Tensor:
    """The sum over each token's experts."""
    gated = second.input_rows(len(gate_up))
    kernels(gate_up.device).gate_extend(gate_up, routing.ends, second.input_factor, gated)
    return kernels(gate_up.device).gather_sum(second.product(gated, routing.ends), routing.places, weights)


def _second_product_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor, of_gate_up: torch.Tensor,
    routing: Routing, weights: torch.Tensor, first: Extended, second: Extended,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
    """Fill the gradient of gate and up; return the gradients of the routing weights and of the update."""
    offered, row_weights = kernels(gate_up.device), weights.flatten()[routing.order]
    of_outputs, gated = second.gradient_rows(len(gate_up)), second.input_rows(len(gate_up))
    offered.gather_extend(gradient, routing.tokens, routing.ends, second.gradient_factor, of_outputs)
    of_gated = second.product_backward(of_outputs, routing.ends)
    factors = (second.input_factor, first.gradient_factor)
    of_row_weights = offered.gate_backward(gate_up, of_gated, row_weights, routing.ends, factors, gated, of_gate_up)
    of_update = second.update_gradients(gated, of_outputs, routing.ends, row_weights)
    return of_row_weights[routing.places].to(weights.dtype), of_update
