"""INT8 rounding against float64, and which layers it concerns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ExportRejected
from pipelines.schemes import SCHEMES, Name, scheme_of
from training.int8 import groups_of, is_quantized, pack, quantization_config, quantize, relative_error, unpack

ROWS = st.lists(st.lists(st.floats(-1e4, 1e4, width=16), min_size=4, max_size=4), min_size=1, max_size=5)


@given(rows=ROWS)
def test_rounding_equals_a_float64_reference(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.bfloat16)
    rounded = quantize(weight)
    steps, scale = rounded.steps, rounded.scale
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
    rounded = quantize(weight)
    steps, scale = rounded.steps, rounded.scale
    assert steps.dtype == torch.int8
    assert (scale.dtype, tuple(scale.shape)) == (torch.bfloat16, (len(rows), 1))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert (scale.double() >= weight.double().abs().amax(1, keepdim=True) / 127.5 * (1 - 2**-8)).all()


def test_the_error_of_a_normal_weight_is_under_a_percent_and_seen_when_it_is_not() -> None:
    weight = torch.randn(64, 256)
    rounded = quantize(weight)
    assert relative_error(weight, rounded) < 0.01
    assert relative_error(weight, replace(rounded, steps=rounded.steps.roll(1, 0))) > 1
    assert relative_error(torch.zeros(2, 2), quantize(torch.zeros(2, 2))) == 0


@pytest.mark.parametrize(("name", "error"), [("int8_w8a8", 0.01), ("int8_w8a16", 0.008), ("int4_w4a16", 0.13)])
def test_smaller_groups_and_more_bits_are_more_exact(name: Name, error: float) -> None:
    weight = torch.randn(64, 256)
    assert relative_error(weight, quantize(weight, scheme_of(name))) < error
    if SCHEMES[name].group:
        coarse, fine = (relative_error(weight, quantize(weight, scheme_of(name, size))) for size in (128, 32))
        assert fine < coarse


@given(data=st.data(), bits=st.sampled_from([4, 8]), out=st.integers(1, 5), words=st.integers(1, 4))
def test_packing_is_undone_and_is_that_of_compressed_tensors(
    data: st.DataObject, bits: int, out: int, words: int
) -> None:
    width = words * 32 // bits
    values = data.draw(
        st.lists(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), min_size=out * width, max_size=out * width)
    )
    steps = torch.tensor(values, dtype=torch.int8).view(out, width)
    packed = pack(steps, bits)
    assert (packed.dtype, tuple(packed.shape)) == (torch.int32, (out, words))
    assert torch.equal(packed, pack_to_int32(steps, bits))
    assert torch.equal(unpack(packed, bits), steps)


def test_rows_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ExportRejected, match=r"96 inputs do not divide into groups of 128; set export\.group_size"):
        groups_of("x.weight", 96, SCHEMES["int4_w4a16"])
    assert groups_of("x.weight", 96, scheme_of("int4_w4a16", 32)) == 3
    assert groups_of("x.weight", 96, SCHEMES["int8_w8a8"]) == 1


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
    group = quantization_config(SCHEMES["int8_w8a8"])["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.bits])
def test_compressed_tensors_understands_the_config(name: Name) -> None:
    scheme = SCHEMES[name]
    config = QuantizationConfig.model_validate(quantization_config(scheme))
    group = config.config_groups["group_0"]
    assert isinstance(group, QuantizationScheme)
    assert group.weights
    assert (group.weights.num_bits, group.weights.group_size) == (scheme.bits, scheme.group)
    assert (group.input_activations is not None) == scheme.int8_activations
