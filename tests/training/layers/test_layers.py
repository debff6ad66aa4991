"""The leaner layers give what transformers' own give, forward and back, with images of equal and of different sizes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from pipelines.artifacts import BaseSnapshot
from training.builtin.drawings import draw_many
from training.chat.encoding import Encoder
from training.layers.decoder import use_fused_decoder
from training.layers.vision import use_fused_vision


def _inputs(encoder: Encoder, sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    drawings = draw_many({"shapes": len(sizes)}, 0)
    images = [drawing.image.resize(size) for drawing, size in zip(drawings, sizes, strict=True)]
    content = [{"type": "image"} for _ in images]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "Which shape?"}]}]
    text = encoder.processor.apply_chat_template(chat, tokenize=False)
    return dict(encoder.processor(text=[text], images=images, return_tensors="pt"))


def _run(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Logits, and gradients at the far end of the language model and of the vision tower."""
    logits = model(**inputs, use_cache=False).logits
    watched = [model.get_input_embeddings().weight, model.model.visual.get_submodule("patch_embed.proj").weight]
    return logits.detach(), *torch.autograd.grad(logits.square().mean(), watched)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 3, [(64, 64), (96, 64), (64, 128)]])
def test_results_and_gradients_are_the_stock_ones(
    sizes: list[tuple[int, int]], any_base: BaseSnapshot, encoder: Encoder
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.float32)
    inputs = _inputs(encoder, sizes)
    inputs.pop("attention_mask")
    stock = _run(model, inputs)
    use_fused_decoder(model)
    use_fused_vision(model)
    for ours, wanted in zip(_run(model, inputs), stock, strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < 1e-4
