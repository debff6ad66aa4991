"""The vision tower's attention and patch embedding, with fewer passes over memory than the stock ones.

All images of a batch are attended to at once, each within itself, whatever their sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from training.layers.rotation import Rotate


def use_fused_vision(model: PreTrainedModel) -> None:
    """Replace them in a Qwen3-VL model."""
    visual = model.get_submodule("model.visual")
    boundaries = Boundaries()
    for block in visual.get_submodule("blocks").children():
        block.register_module("attn", VisionAttention(block.get_submodule("attn"), boundaries))
    visual.register_module("patch_embed", PatchEmbed(visual.get_submodule("patch_embed")))


class Boundaries:
    """Where images begin and end: asked of the GPU once for all layers, because each time it has to be waited for."""

    def __init__(self) -> None:
        """Know nothing."""
        self.ends: torch.Tensor | None = None
        self.lengths: list[int] = []

    def of(self, ends: torch.Tensor) -> list[int]:
        """Patches of each image.

        Args:
            ends: [images + 1]: where each image begins and the last one ends; the same tensor for all layers.
        """
        if self.ends is not ends:
            self.ends, self.lengths = ends, ends.diff().tolist()
        return self.lengths


class VisionAttention(nn.Module):
    """Attention within each image, with rotary places."""

    def __init__(self, stock: Any, boundaries: Boundaries) -> None:
        """Take over the children of transformers' own module."""
        super().__init__()
        self.heads: int = stock.num_heads
        self.qkv, self.proj = stock.qkv, stock.proj
        self.boundaries = boundaries

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_unused: Any,
    ) -> torch.Tensor:
        """As the stock module.

        Args:
            hidden_states: [patches, hidden].
            cu_seqlens: [images + 1]: where each image begins and the last one ends.
            position_embeddings: Cosine and sine of the angles, [patches, head size] each.

        Returns:
            [patches, hidden].
        """
        projected = self.qkv(hidden_states).view(len(hidden_states), 3 * self.heads, -1)
        rotated: torch.Tensor = Rotate.apply(projected[:, : 2 * self.heads], *position_embeddings)
        query, key = rotated.split(self.heads, dim=1)
        value = projected[:, 2 * self.heads :]
        return self.proj(attend_within(query, key, value, cu_seqlens, self.boundaries.of(cu_seqlens)).flatten(1))


class PatchEmbed(nn.Module):
    """The patch embedding as the product that it is: each patch meets the kernel of the convolution once."""

    def __init__(self, stock: Any) -> None:
        """Take over the convolution."""
        super().__init__()
        self.proj = stock.proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[patches, values] to [patches, hidden]."""
        weight = self.proj.weight.flatten(1)
        return functional.linear(patches.to(weight.dtype), weight, self.proj.bias)


def attend_within(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """Attention within each image of a packed sequence.

    Args:
        query: [patches, heads, head size], as key and value: the images one after another.
        ends: [images + 1]: where each image begins and the last one ends.
        lengths: Patches of each image: the same, known to the CPU.

    Returns:
        [patches, heads, head size].
    """
    if len(set(lengths)) == 1:
        batch = (t.unflatten(0, (len(lengths), -1)).transpose(1, 2) for t in (query, key, value))
        return functional.scaled_dot_product_attention(*batch).transpose(1, 2).flatten(0, 1)
    if query.is_cuda:
        longest, where = max(lengths), ends.to(torch.int32)
        attended = varlen_attn(query, key, value, where, where, longest, longest)
        assert isinstance(attended, torch.Tensor)
        return attended
    images = zip(*(t.transpose(0, 1).split(lengths, dim=1) for t in (query, key, value)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*image) for image in images], dim=1).transpose(0, 1)
