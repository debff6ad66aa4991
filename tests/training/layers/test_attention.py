"""Attention over all images at once equals attention image by image."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipelines.artifacts import BaseSnapshot
from training.builtin.drawings import draw_many
from training.chat.encoding import Encoder
from training.layers.attention import packed_attention, use_packed_vision_attention


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 8, 2]])
def test_each_image_attends_to_itself_only(lengths: list[int]) -> None:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8)
    packed, _ = packed_attention(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=ends, scaling=0.3)
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        weights = (q[:, :, begin:end] @ k[:, :, begin:end].mT * 0.3).softmax(-1)
        alone = (weights @ v[:, :, begin:end]).transpose(1, 2)
        torch.testing.assert_close(packed[:, begin:end], alone)


def test_the_vision_tower_gives_what_the_stock_one_gives(any_base: BaseSnapshot, encoder: Encoder) -> None:
    images = [drawing.image for drawing in draw_many({"printed": 2, "shapes": 1}, 0)]
    images.append(images[0].resize((96, 64)))
    inputs = encoder.processor.image_processor(images=images, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.float32)
    with torch.no_grad():
        stock = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        use_packed_vision_attention(model)
        ours = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)
