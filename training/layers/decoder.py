"""Attention and norms of a decoder layer, with fewer passes over memory than the stock ones.

The weights stay where they are and keep their names: a stock module is replaced by one that takes over its children.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.layers.lora import products
from training.layers.rotation import Heads

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Looked up each time: LoRA takes the place of these modules later."""


def use_fused_decoder(model: PreTrainedModel) -> None:
    """Replace them in a Qwen3 or Qwen3-VL model, dense or not."""
    text = model.get_decoder()
    if hasattr(text, "_deepstack_process"):
        text._deepstack_process = add_visual
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf == "self_attn":
            model.get_submodule(parent).register_module(leaf, RotaryAttention(module))
        elif leaf in ("input_layernorm", "post_attention_layernorm"):
            model.get_submodule(parent).register_module(leaf, RMSNorm(module.weight, module.variance_epsilon))


def add_visual(hidden: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Add DeepStack features to visual tokens, without asking the GPU where these are and waiting for the answer.

    Args:
        hidden: [batch, tokens, hidden].
        mask: [batch, tokens]: where visual tokens stand.
        features: [visual tokens, hidden].
    """
    spread = torch.zeros_like(hidden).masked_scatter(mask.unsqueeze(-1), features.to(hidden.dtype))
    return hidden + spread


class RMSNorm(nn.Module):
    """The root mean square norm (Zhang and Sennrich 2019) in one kernel, in fp32 within."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """Take over a weight, [hidden]."""
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class RotaryAttention(nn.Module):
    """Causal attention with norms on queries and keys and rotary places; padding stands on the right."""

    def __init__(self, stock: Any) -> None:
        """Take over the children of transformers' own module."""
        super().__init__()
        self.head_dim: int = stock.head_dim
        self.queries: int = stock.config.num_attention_heads
        self.scaling: float = stock.scaling
        for name in PROJECTIONS:
            self.register_module(name, stock.get_submodule(name))
        self.q_norm, self.k_norm = stock.q_norm, stock.k_norm

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: None = None,
        **_unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """As the stock module, without a cache.

        Args:
            hidden_states: [batch, tokens, hidden].
            position_embeddings: Cosine and sine of the angles, [batch, tokens, head size] each.
            attention_mask: None; causal attention needs none where padding stands on the right.
            past_key_values: None.

        Returns:
            [batch, tokens, hidden], and no weights.
        """
        assert past_key_values is None
        batch, tokens, _ = hidden_states.shape
        projections = [self.get_submodule(name) for name in PROJECTIONS]
        projected = products(projections[:3], hidden_states.flatten(0, 1)).unflatten(1, (-1, self.head_dim))
        places = (angles.expand(batch, -1, -1).reshape(-1, self.head_dim) for angles in position_embeddings)
        heads = Heads.apply(projected, (self.q_norm, self.k_norm), self.queries, *places)
        query, key, value = (each.unflatten(0, (batch, tokens)).transpose(1, 2) for each in heads)
        attended = functional.scaled_dot_product_attention(
            query, key, value,
            attn_mask=attention_mask, is_causal=attention_mask is None, scale=self.scaling, enable_gqa=True,
        )  # fmt: skip
        out: torch.Tensor = projections[3](attended.transpose(1, 2).reshape(batch, tokens, -1))
        return out, None
