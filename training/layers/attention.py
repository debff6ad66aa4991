"""Attention for the vision tower: all images of a batch in one call, instead of a Python loop over images."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# transformers hands the boundaries between images only to functions with "flash" in their name, and calls any other
# one once per image; "sdpa" in the name has it check what PyTorch's own attention needs.
PACKED = "packed_flash_sdpa"


def use_packed_vision_attention(model: PreTrainedModel) -> None:
    """Let the vision tower of a Qwen3-VL model attend to all images at once; the text part keeps what it has."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    model.set_attn_implementation({"vision_config": PACKED})


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each image of a packed sequence.

    Args:
        query: [1, heads, patches, head size], as key and value: the images one after another.
        attention_mask: None; the boundaries take its place.
        cu_seq_lens_q: [images + 1], where each image begins and the last one ends.
        scaling: Factor of the scores.
        dropout: Share of the scores to drop.

    Returns:
        [1, patches, heads, head size], and no weights.
    """
    assert attention_mask is None
    lengths = cu_seq_lens_q.diff().tolist()
    parts = [tensor.squeeze(0) for tensor in (query, key, value)]
    if len(set(lengths)) == 1:
        q, k, v = (p.unflatten(1, (len(lengths), lengths[0])).transpose(0, 1) for p in parts)
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        return out.transpose(0, 1).flatten(1, 2).transpose(0, 1).unsqueeze(0), None
    images = zip(*(p.split(lengths, dim=1) for p in parts), strict=True)
    outs = [functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling) for q, k, v in images]
    return torch.cat(outs, dim=1).transpose(0, 1).unsqueeze(0), None
