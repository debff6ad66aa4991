"""Gradient checkpointing: of each decoder layer only the input is kept, the rest is computed again on the way back.

Leaner than PyTorch's own, which packs and unpacks every saved tensor in Python and keeps random states: nothing here is
random. And the experts are not computed twice: they stand last in a layer and keep nothing but their inputs, so in the
second run nobody needs their result, and they hand on a tensor of NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)
"""Whether this is the second run of a layer."""


def checkpoint_layers(model: PreTrainedModel, *, offload: bool = False) -> None:
    """Keep the inputs of the decoder layers only.

    Args:
        model: Any of the supported ones.
        offload: Keep the inputs in the memory of the host: slower, for when the budget needs it.
    """
    model.enable_input_require_grads()
    keep = _Offloaded if offload else _Kept
    modules: list[Any] = list(model.modules())
    for experts in (module for module in modules if hasattr(module, "gate_up_lora")):
        experts.keep = False
    for layer in (module for module in modules if _is_decoder_layer(module)):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda run, hidden: _Layer.apply(run, keep, hidden)


def _is_decoder_layer(module: torch.nn.Module) -> bool:
    """Blocks of the vision tower need no gradient."""
    return isinstance(module, GradientCheckpointingLayer) and hasattr(module, "self_attn")


class _Layer(torch.autograd.Function):
    """Runs a layer without a graph, and with one when its gradient is asked for."""

    @staticmethod
    def forward(
        ctx: Any, layer: Callable[[torch.Tensor], torch.Tensor], keep: type[_Kept], hidden: torch.Tensor
    ) -> torch.Tensor:
        ctx.layer, ctx.hidden = layer, keep(hidden)
        return layer(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, torch.Tensor | None]:
        hidden = ctx.hidden.again().requires_grad_()
        layer, ctx.layer, ctx.hidden = ctx.layer, None, None  # the graph lives on until the last layer is done
        token = recomputing.set(True)
        try:
            with torch.enable_grad():
                out = layer(hidden)
        finally:
            recomputing.reset(token)
        torch.autograd.backward(out, gradients)
        return None, None, hidden.grad


class _Kept:
    """A tensor where it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()

    def again(self) -> torch.Tensor:
        """Another tensor of the same values, without a graph."""
        return self.tensor.detach()


class _Offloaded(_Kept):
    """A tensor in the memory of the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.device = tensor.device
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        # Of the same stream as what reads it back, so it is there by then.
        self.tensor = pinned.copy_(tensor.detach(), non_blocking=True)

    def again(self) -> torch.Tensor:
        """The tensor on its device again."""
        return self.tensor.to(self.device, non_blocking=True, copy=True)
