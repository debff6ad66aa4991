"""Tokens, pixels and answer masks: exact, counted, never cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.artifacts import BaseSnapshot
from training.builtin.drawings import draw_many
from training.chat.encoding import IGNORE, Encoder, Unencodable, collate, load_processor

IMAGE = draw_many({"printed": 1}, 0)[0].image


def _chat(*turns: str, images: int = 1) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(turns):
        content = [{"type": "text", "text": text}]
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    messages[0]["content"] = [{"type": "image", "image": "x"}] * images + messages[0]["content"]
    return messages


def _learned(encoder: Encoder, labels: torch.Tensor) -> str:
    return str(encoder.tokenizer.decode(labels[labels != IGNORE]))


def test_exactly_the_answer_and_its_end_are_learned(encoder: Encoder) -> None:
    row = encoder.encode(_chat("Which digit is written here?", "The digit is 7."), [IMAGE])
    assert _learned(encoder, row.labels) == "The digit is 7.<|im_end|>"
    assert torch.equal(row.labels[row.labels != IGNORE], row.input_ids[row.labels != IGNORE])


def test_every_answer_of_a_conversation_is_learned_and_nothing_between(encoder: Encoder) -> None:
    row = encoder.encode(_chat("a?", "One.", "b?", "Two."), [IMAGE])
    assert _learned(encoder, row.labels) == "One.<|im_end|>Two.<|im_end|>"


def test_the_tokens_are_those_of_the_processor_up_to_the_answer(encoder: Encoder) -> None:
    chat = _chat("Which digit is written here?", "The digit is 7.")
    prompt = encoder.processor.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    served = encoder.processor(text=[prompt], images=[IMAGE], return_tensors="pt")
    row = encoder.encode(chat, [IMAGE])
    asked = row.input_ids[: int((row.labels == IGNORE).sum())]
    assert torch.equal(asked, served["input_ids"][0])
    assert row.pixel_values is not None
    assert torch.equal(row.pixel_values, served["pixel_values"])


@pytest.mark.parametrize("sizes", [[(64, 64)], [(96, 64), (300, 200)], [(1000, 400)], []])
def test_visual_tokens_are_counted_without_decoding(sizes: list[tuple[int, int]], encoder: Encoder) -> None:
    chat = _chat("What?", "That.", images=len(sizes))
    row = encoder.encode(chat, [IMAGE.resize(size) for size in sizes])
    assert encoder.count(chat, sizes) == (len(row.input_ids), int(row.image_mask.sum()))
    if row.image_grid_thw is not None:
        assert int(row.image_mask.sum()) == int(row.image_grid_thw.prod(-1).sum()) // 4


def test_an_image_mark_without_an_image_is_refused(encoder: Encoder) -> None:
    with pytest.raises(Unencodable, match="visual tokens"):
        encoder.encode(_chat("What?", "That.", images=2), [IMAGE])


def test_a_template_that_rewrites_earlier_turns_is_refused(moe_base: BaseSnapshot) -> None:
    processor = load_processor(moe_base.path, 4096, 65536)
    processor.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"
    with pytest.raises(Unencodable, match="rewrites"):
        Encoder(processor).segments(_chat("a?", "One.", "b?", "Two."))


def test_pixel_limits_are_the_configs_not_the_models(moe_base: BaseSnapshot) -> None:
    chat = _chat("What?", "That.")
    small, large = (Encoder(load_processor(moe_base.path, 4096, pixels)) for pixels in (4096, 65536))
    assert small.count(chat, [(256, 256)])[1] == 4
    assert large.count(chat, [(256, 256)])[1] == 64


def test_rows_are_padded_on_the_right_and_nothing_is_lost(encoder: Encoder) -> None:
    rows = [encoder.encode(_chat("What?", answer), [IMAGE]) for answer in ("One.", "The digit is 7, I think.")]
    positions = [torch.arange(len(row.input_ids)).expand(3, -1) for row in rows]
    batch = collate(rows, positions, pad=0)
    assert batch["input_ids"].shape == (2, max(len(row.input_ids) for row in rows))
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        assert torch.equal(batch["input_ids"][i, :length], row.input_ids)
        assert torch.equal(batch["labels"][i, :length], row.labels)
        assert (batch["labels"][i, length:] == IGNORE).all()
        assert torch.equal(batch["position_ids"][:, i, :length], positions[i])
    assert batch["pixel_values"].shape[0] == 32


def test_rows_with_and_without_images_share_a_batch(encoder: Encoder) -> None:
    rows = [encoder.encode(_chat("What?", "That.", images=n), [IMAGE] * n) for n in (0, 2, 0, 1)]
    positions = [torch.arange(len(row.input_ids)).expand(3, -1) for row in rows]
    batch = collate(rows, positions, pad=0)
    assert batch["image_grid_thw"].shape == (3, 3)
    assert batch["pixel_values"].shape[0] == 48
    image_token = encoder.processor.image_token_id
    assert (batch["input_ids"] == image_token).sum(1).tolist() == [0, 8, 0, 4]


def test_a_batch_without_images_has_no_pixels(encoder: Encoder) -> None:
    row = encoder.encode(_chat("What?", "That.", images=0), [])
    assert "pixel_values" not in collate([row], [torch.zeros(3, len(row.input_ids), dtype=torch.long)], pad=0)
