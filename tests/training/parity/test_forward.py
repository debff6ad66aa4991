"""The streamed forward pass: logits of the stock model, of every variant, with pictures of several sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3MoeConfig

from pipelines.artifacts import BaseSnapshot
from tests.training.parity.conftest import Exported, export
from tests.training.parity.parts import fused
from tests.training.parts import adapted_model
from training.adapter import read_weights
from training.chat.encoding import IGNORE, Encoded, Encoder, collate, load_processor
from training.chat.positions import token_positions
from training.loss import AnswerLoss
from training.parity.forward import SideBySide, round_rows
from training.parity.variants import Merged, Original, Trained, Variant, Written

CLOSE = 1e-4
"""Nats."""


@pytest.fixture
def either(any_base: BaseSnapshot, tmp_path: Path) -> Exported:
    """The bases as they are: their logits are small, so that fp32 leaves no room for a difference."""
    return export(any_base, tmp_path)


@pytest.fixture
def rows(either: Exported) -> list[Encoded]:
    """A text, a picture, and two pictures of other sizes in one row: padding, DeepStack and places all matter."""
    encoder = Encoder(load_processor(either.base, 4096, 65536))
    rows = []
    for sizes in ((), ((64, 64),), ((96, 64), (64, 128))):
        content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": "Which shape is drawn here?"}]
        answer = [{"type": "text", "text": "The shape is square."}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        rows.append(encoder.encode(messages, [Image.effect_noise(size, 60).convert("RGB") for size in sizes]))
    return rows


def _streamed(base: Path, rows: list[Encoded], *variants: Variant) -> list[torch.Tensor]:
    model = SideBySide(base, variants, "cpu")
    inputs = collate(rows, [token_positions(model.model, row) for row in rows], 0)
    labelled = inputs.pop("labels") != IGNORE
    return list(model.logprobs(model.hidden(inputs, labelled)))


@torch.no_grad()
def _stock(model: torch.nn.Module, rows: list[Encoded]) -> torch.Tensor:
    """Row by row, so that nothing is padded."""
    objective = AnswerLoss(model.eval())
    batches = [collate([row], [token_positions(model, row)], 0) for row in rows]
    return torch.cat([objective.answers(**batch)[0] for batch in batches]).log_softmax(-1)


def test_the_reference_is_the_stock_model_with_pefts_adapter(either: Exported, rows: list[Encoded]) -> None:
    stock = AutoModelForImageTextToText.from_pretrained(either.base, dtype=torch.float32)
    plain = _stock(stock, rows)
    adapted = _stock(PeftModel.from_pretrained(stock, either.adapter).get_base_model(), rows)
    found, bare = _streamed(
        either.base, rows, Original(either.base, either.adapter, "cpu"), Original(either.base, None, "cpu")
    )
    assert (found - adapted).abs().max() < CLOSE
    assert (bare - plain).abs().max() < CLOSE
    assert (adapted - plain).abs().max() > 0.1


def test_merged_and_written_models_are_the_stock_model_with_their_weights(
    either: Exported, rows: list[Encoded]
) -> None:
    stock = AutoModelForImageTextToText.from_pretrained(either.base, dtype=torch.float32)
    stock.load_state_dict(fused(load_file(either.merged / "model.safetensors"), stock.state_dict()))
    wanted = _stock(stock, rows)
    merged = Merged(Original(either.base, either.adapter, "cpu"))
    for found in _streamed(either.base, rows, merged, Written(either.merged, "cpu")):
        assert (found - wanted).abs().max() < CLOSE


def test_what_was_trained_is_the_trainers_own_model(
    either: Exported, rows: list[Encoded], any_base: BaseSnapshot
) -> None:
    model, adapted = adapted_model(any_base)
    read_weights(adapted, either.adapter)
    [found] = _streamed(either.base, rows, Trained(Original(either.base, either.adapter, "cpu")))
    assert (found - _stock(model, rows)).abs().max() < CLOSE


def test_variants_do_not_touch_each_other(either: Exported, rows: list[Encoded]) -> None:
    original = Original(either.base, either.adapter, "cpu")
    variants = (original, Trained(original), Written(either.int8, "cpu"))
    for together, variant in zip(_streamed(either.base, rows, *variants), variants, strict=True):
        [alone] = _streamed(either.base, rows, variant)
        assert (together - alone).abs().max() < CLOSE


def test_activations_are_rounded_per_token_as_vllm_does() -> None:
    rows = torch.randn(5, 64) * torch.tensor([1e-3, 1, 10, 100, 0])[:, None]
    steps = round_rows(rows) / (rows.abs().amax(1, keepdim=True).clamp_min(1e-10) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert (round_rows(rows) - rows).abs().amax(1).le(rows.abs().amax(1) / 127 * 0.501).all()
    assert int(steps.abs().max().round()) == 127


def test_a_model_of_text_alone_streams_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96, intermediate_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stock.save_pretrained(tmp_path)
    ids = torch.randint(320, (2, 9))
    labelled = torch.zeros_like(ids, dtype=torch.bool)
    labelled[:, 5:] = True
    original = Original(tmp_path, None, "cpu")
    model = SideBySide(tmp_path, (original, Trained(original)), "cpu")
    reference, trained = model.logprobs(model.hidden({"input_ids": ids}, labelled))
    with torch.no_grad():
        wanted = stock(input_ids=ids).logits[:, :-1][labelled[:, 1:]].log_softmax(-1)
    assert (reference - wanted).abs().max() < CLOSE
    assert (trained - wanted).abs().max() > CLOSE
