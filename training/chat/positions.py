"""Where tokens stand: Qwen3-VL gives every token a place in time, height and width."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from training.chat.encoding import Encoded


def token_positions(model: PreTrainedModel, row: Encoded) -> torch.Tensor:
    """The places of a row's tokens by the model's own rule: [3, tokens], int64."""
    positions, _ = model.model.get_rope_index(
        input_ids=row.input_ids[None], mm_token_type_ids=row.image_mask[None], image_grid_thw=row.image_grid_thw
    )
    return positions[:, 0]
