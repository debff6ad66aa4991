"""After loading, the model proves itself: what is quantised, what is trainable, and what is neither."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import TrainingFailed
from training.layers.nf4 import PackedStack
from training.model import attach_lora, load_quantized, prove_quantized, prove_trainable


@pytest.fixture
def model(moe_base: BaseSnapshot) -> torch.nn.Module:
    return load_quantized(moe_base.path, torch.float32, "cpu")


def test_experts_and_attention_are_in_four_bits_and_the_rest_is_not(any_base: BaseSnapshot) -> None:
    model = load_quantized(any_base.path, torch.float32, "cpu")
    for name, parameter in model.named_parameters():
        packed = ("self_attn" in name and "norm" not in name) or ".mlp." in name
        packed = packed and "language_model" in name and "gate.weight" not in name
        assert (parameter.dtype == torch.uint8) == packed, name
        assert not parameter.requires_grad
    stacks = [module for module in model.modules() if isinstance(module, PackedStack)]
    assert len(stacks) == (6 if "Moe" in any_base.architecture else 0)


def test_the_stock_quantiser_is_caught_leaving_experts_in_full(moe_base: BaseSnapshot) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["model.visual", "lm_head"])
    model = AutoModelForImageTextToText.from_pretrained(moe_base.path, quantization_config=config)
    with pytest.raises(TrainingFailed, match=r"layers\.0\.mlp\.experts\.gate_up_proj is torch\.bfloat16, not NF4"):
        prove_quantized(model)


def test_a_vision_tower_in_four_bits_is_caught(moe_base: BaseSnapshot) -> None:
    model = load_quantized(moe_base.path, torch.float32, "cpu")
    layer = model.model.visual.blocks[0].attn.proj
    quantized = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4")
    model.model.visual.blocks[0].attn.proj = quantized.to("cpu")
    quantized.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False).to("cpu")
    with pytest.raises(TrainingFailed, match=r"visual\.blocks\.0\.attn\.proj\.weight is quantised"):
        prove_quantized(model)


def test_a_linear_layer_left_in_full_is_caught(model: torch.nn.Module) -> None:
    model.model.language_model.layers[1].self_attn.q_proj = torch.nn.Linear(128, 128)
    with pytest.raises(TrainingFailed, match=r"layers\.1\.self_attn\.q_proj\.weight is torch\.float32"):
        prove_quantized(model)


def test_a_layer_that_bitsandbytes_unpacks_wrongly_is_caught(model: torch.nn.Module) -> None:
    narrow = bitsandbytes.nn.Linear4bit(96, 128, quant_type="nf4").to("cpu")
    model.model.language_model.layers[1].self_attn.q_proj = narrow
    with pytest.raises(TrainingFailed, match=r"q_proj: 96 inputs are no multiple of 64"):
        prove_quantized(model)


def test_experts_with_another_activation_are_caught(model: torch.nn.Module) -> None:
    model.model.language_model.layers[0].mlp.experts.act_fn = torch.nn.GELU()
    with pytest.raises(TrainingFailed, match=r"layers\.0\.mlp\.experts has GELU"):
        prove_quantized(model)


def test_a_stack_that_grew_is_caught(model: torch.nn.Module) -> None:
    stack = model.model.language_model.layers[0].mlp.experts.down_proj
    stack.register_buffer("spare", torch.zeros(stack.shape, dtype=torch.bfloat16))
    with pytest.raises(TrainingFailed, match=r"down_proj takes 2\.5\d bytes a parameter"):
        prove_quantized(model)


@pytest.mark.parametrize(
    ("targets", "moe", "dense"),
    [("attention", 12, 12), ("attention+experts", 18, 21), ("attention+experts+merger", 24, 27)],
)
def test_exactly_the_targets_are_trainable(targets: str, moe: int, dense: int, any_base: BaseSnapshot) -> None:
    model = load_quantized(any_base.path, torch.float32, "cpu")
    adapted = attach_lora(model, targets, 4, 8, seed=0)
    assert len(adapted) == (moe if "Moe" in any_base.architecture else dense)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * len(adapted)
    assert not [name for name in trainable if "visual.blocks" in name or "lm_head" in name]
    assert any("visual" in name for name in trainable) == targets.endswith("merger")
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_another_trainable_tensor_is_caught(model: torch.nn.Module) -> None:
    adapted = attach_lora(model, "attention", 4, 8, seed=0)
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(TrainingFailed, match=r"lm_head\.weight: requires_grad is True"):
        prove_trainable(model, adapted, "attention")


def test_a_missing_target_is_caught(model: torch.nn.Module) -> None:
    adapted = attach_lora(model, "attention+experts", 4, 8, seed=0)
    name, module = next((n, m) for n, m in adapted.items() if n.endswith("down_proj"))
    module.requires_grad_(False)
    del adapted[name]
    with pytest.raises(TrainingFailed, match="17 targets, and this model should have 18"):
        prove_trainable(model, adapted, "attention+experts")


def test_the_seed_decides_the_first_weights(moe_base: BaseSnapshot) -> None:
    weights = []
    for seed in (1, 1, 2):
        adapted = attach_lora(load_quantized(moe_base.path, torch.float32, "cpu"), "attention+experts", 4, 8, seed)
        weights.append(torch.cat([module.a.flatten() for module in adapted.values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_gradients_flow_through_frozen_layers_after_an_evaluation(model: torch.nn.Module) -> None:
    # bitsandbytes repacks layers in the first pass without gradient; what it repacks has no backward.
    ids = torch.arange(8)[None]
    adapted = attach_lora(model, "attention", 4, 8, seed=0)
    first = next(iter(adapted.values()))

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=ids).logits.square().sum().backward()
        assert first.b.grad is not None
        return first.b.grad.clone()

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(gradient(), before)
