"""Serving is predicted as it was measured: weights, and the KV cache in what is left of the engine's share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.budget.base import Base, find_base
from pipelines.budget.demand import GIB
from pipelines.budget.serving import kv_bytes, kv_tokens, serving_demand, weight_bytes
from pipelines.config import Config
from pipelines.schemes import SCHEMES, Name, scheme_of
from pipelines.settings import Settings
from tests.pipelines.budget.variants import changed

INT8 = SCHEMES["int8_w8a8"]


def measured_with(config: Config, **hardware: object) -> Config:
    """The settings of the measurement: vLLM 0.26 on an H200, of which 48 GiB x 0.85 were given to it."""
    serving = changed(config, "serving", gpu_memory_utilization=0.85, max_num_batched_tokens=16384)
    return changed(serving, "hardware", **hardware)


@pytest.mark.parametrize(("scheme", "gib"), [("int8_w8a8", 30.57), ("bf16", 58.33), ("int4_w4a16", 17.09)])
def test_the_weights_are_those_measured(base: Base, scheme: Name, gib: float) -> None:
    assert weight_bytes(base, SCHEMES[scheme]) / GIB == pytest.approx(gib, rel=0.03)


def test_smaller_groups_are_larger_files(base: Base) -> None:
    sizes = [weight_bytes(base, scheme_of("int4_w4a16", group)) for group in (128, 64, 32)]
    sizes += [weight_bytes(base, SCHEMES[name]) for name in ("int8_w8a8", "int8_w8a16", "bf16")]
    assert sizes == sorted(sizes)
    assert sizes[1] - sizes[0] == 2 * base.parameters.quantized / 128
    assert weight_bytes(base, SCHEMES["gptq_int4"]) == sizes[0]


@pytest.mark.parametrize(("scheme", "tokens"), [("int8_w8a8", 83_424), ("int4_w4a16", 230_576)])
def test_the_kv_cache_is_the_one_measured(qwen: Config, base: Base, scheme: Name, tokens: int) -> None:
    config = measured_with(qwen)
    predicted = kv_tokens(config, base, serving_demand(config, base, SCHEMES[scheme], name="serving"))
    assert predicted == pytest.approx(tokens, rel=0.1)
    assert kv_bytes(base.shape) == 96 * 1024


def test_the_kv_cache_of_bf16_on_the_whole_card(qwen: Config, base: Base) -> None:
    config = changed(measured_with(qwen, memory_gib=139.8), "serving", gpu_memory_utilization=0.9)
    predicted = kv_tokens(config, base, serving_demand(config, base, SCHEMES["bf16"], name="serving"))
    assert predicted == pytest.approx(709_088, rel=0.1)


def test_an_engine_must_hold_one_sequence(qwen: Config, base: Base) -> None:
    """With the KV cache of less than one, vLLM does not start."""
    room = kv_tokens(qwen, base, serving_demand(qwen, base, INT8, name="serving"))
    longest = changed(qwen, "serving", max_model_len=room)
    longer = changed(qwen, "serving", max_model_len=room + 1)
    assert serving_demand(longest, base, INT8, name="serving").verdict == "tight"
    assert serving_demand(longer, base, INT8, name="serving").verdict == "does not fit"


def test_an_adapter_beside_the_base_takes_a_place_of_its_own(qwen: Config, base: Base) -> None:
    alone = qwen.model_copy(update={"export": qwen.export.model_copy(update={"artifact": "adapter"})})
    merged, beside = (serving_demand(config, base, INT8, name="serving").nbytes for config in (qwen, alone))
    assert round((beside - merged) / 2**30, 2) == 1.2  # 642.5 M of rank 16


def test_on_a_cpu_the_cache_is_what_the_config_says(smoke: Config) -> None:
    """Measured for the embedded default: 1.66 GiB."""
    tiny = find_base(smoke.model.source, Settings())
    demand = serving_demand(smoke, tiny, INT8, name="serving")
    assert demand.limit_bytes == smoke.hardware.memory_gib * GIB
    assert demand.peak_bytes / GIB == pytest.approx(1.66, rel=0.1)
    assert kv_tokens(smoke, tiny, demand) == smoke.serving.kv_cache_gib * GIB // kv_bytes(tiny.shape)


@given(length=st.integers(64, 200_000), batched=st.integers(64, 65_536), pixels=st.integers(1024, 2**24))
def test_more_asks_for_more(qwen: Config, base: Base, length: int, batched: int, pixels: int) -> None:
    config = changed(qwen, "serving", max_model_len=length, max_num_batched_tokens=batched)
    config = changed(config, "images", max_pixels=pixels)
    demand = serving_demand(config, base, INT8, name="serving").nbytes
    for section, field in (
        ("serving", "max_model_len"),
        ("serving", "max_num_batched_tokens"),
        ("images", "max_pixels"),
    ):
        more = changed(config, section, **{field: 2 * getattr(getattr(config, section), field)})
        assert serving_demand(more, base, INT8, name="serving").nbytes >= demand
