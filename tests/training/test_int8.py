"""INT8 rounding against float64, and which layers it concerns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ExportRejected
from training.int8 import is_quantized, quantization_config, quantize, relative_error

ROWS = st.lists(st.lists(st.floats(-1e4, 1e4, width=16), min_size=4, max_size=4), min_size=1, max_size=5)


@given(rows=ROWS)
def test_rounding_equals_a_float64_reference(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.bfloat16)
    steps, scale = quantize(weight)
    exact, step = weight.double(), scale.double()
    reference = (exact / step).round().clamp(-128, 127)
    assert int((steps.double() - reference).abs().max()) <= 1
    ties = ((exact / step) % 1 - 0.5).abs() < 1e-5
    assert torch.equal(steps.double()[~ties], reference[~ties])
    # bf16 rounds the scale by up to 2^-8, so the largest value may be clipped by half a step more.
    assert ((steps.double() * step - exact).abs() <= step * 1.01).all()


@given(rows=ROWS)
def test_scales_are_finite_positive_and_follow_the_largest_value(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.bfloat16)
    steps, scale = quantize(weight)
    assert steps.dtype == torch.int8
    assert (scale.dtype, tuple(scale.shape)) == (torch.bfloat16, (len(rows), 1))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert (scale.double() >= weight.double().abs().amax(1, keepdim=True) / 127.5 * (1 - 2**-8)).all()


def test_the_error_of_a_normal_weight_is_under_a_percent_and_seen_when_it_is_not() -> None:
    weight = torch.randn(64, 256)
    steps, scale = quantize(weight)
    assert relative_error(weight, steps, scale) < 0.01
    assert relative_error(weight, steps.roll(1, 0), scale) > 1
    assert relative_error(torch.zeros(2, 2), *quantize(torch.zeros(2, 2))) == 0


LAYER = "model.language_model.layers.3"


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.self_attn.q_proj.weight",
        f"{LAYER}.mlp.experts.17.down_proj.weight",
        f"{LAYER}.mlp.up_proj.weight",
        "model.layers.0.mlp.experts.0.gate_proj.weight",
    ],
)
def test_attention_mlp_and_experts_become_int8(name: str) -> None:
    assert is_quantized(name, (8, 8))


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "model.visual.merger.linear_fc1.weight",
        "model.visual.patch_embed.proj.weight",
        f"{LAYER}.mlp.gate.weight",
        f"{LAYER}.self_attn.q_norm.weight",
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.self_attn.q_proj.bias",
    ],
)
def test_everything_that_the_engine_ignores_stays(name: str) -> None:
    assert not is_quantized(name, (8, 8))


def test_a_layer_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ExportRejected, match=r"layers\.3\.mystery\.weight"):
        is_quantized(f"{LAYER}.mystery.weight", (8, 8))


def test_the_config_says_w8a8() -> None:
    group = quantization_config()["config_groups"]["group_0"]  # type: ignore[index]
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }  # fmt: skip
