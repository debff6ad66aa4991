"""What the plan says of schemes before one is exported."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest

from pipelines.budget.base import Base, find_base
from pipelines.comparison.planned import plan_of, stored_gib
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT, Settings


@pytest.fixture
def large() -> Config:
    """The 30B model on a 48 GiB share of a card."""
    return load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", ("hardware=h200_capped_48gb",))


@pytest.fixture
def shape(large: Config, settings: Settings) -> Base:
    """Of that model, as published."""
    return find_base(large.model.source, settings)


def test_bf16_does_not_fit_48_gib_and_its_quantised_forms_do(large: Config, shape: Base) -> None:
    plans = {name: plan_of(name, large, shape) for name in ("bf16", "fp16", "int8_w8a8", "int4_w4a16", "gptq_int4")}  # type: ignore[arg-type]
    assert {name: plan.fits_here for name, plan in plans.items()} == {
        "bf16": False,
        "fp16": False,
        "int8_w8a8": True,
        "int4_w4a16": True,
        "gptq_int4": True,
    }
    assert plans["bf16"].objection is not None
    assert plans["bf16"].objection.startswith("does not fit h200_capped_48gb: 60.6 of 43.2 GiB")
    assert plans["bf16"].fits.startswith("does not fit (")
    assert plans["bf16"].kv_tokens == 0
    assert plans["int8_w8a8"].objection is None
    assert plans["int4_w4a16"].kv_tokens > 2 * plans["int8_w8a8"].kv_tokens > 0
    assert plans["int4_w4a16"].weights_gib < 0.35 * plans["bf16"].weights_gib


def test_on_a_cpu_the_verdict_is_about_a_48_gb_card(smoke: Config, shape: Base) -> None:
    plan = plan_of("int8_w8a8", smoke, shape)
    assert (plan.card, plan.verdict) == ("l40s_48gb", "fits")
    assert plan.objection is not None
    assert plan.objection.startswith("does not fit cpu")


def test_what_hardware_or_rows_cannot_is_told_before_anything_is_exported(smoke: Config, shape: Base) -> None:
    roomy = smoke.model_copy(update={"hardware": smoke.hardware.model_copy(update={"memory_gib": 100.0})})
    odd = dataclasses.replace(shape, shape=dataclasses.replace(shape.shape, width=96))
    assert "no kernels for int8_w8a16" in (plan_of("int8_w8a16", roomy, shape).objection or "")
    assert "few of them multiply in float16" in (plan_of("fp16", roomy, shape).objection or "")
    assert plan_of("bf16", roomy, shape).objection is None
    assert "rows of 96 inputs" in (plan_of("int4_w4a16", roomy, odd).objection or "")
    assert plan_of("int8_w8a8", roomy, odd).objection is None


def test_the_size_of_weights_is_read_from_their_headers(tmp_path: Path) -> None:
    for number in range(2):
        header = {"__metadata__": {"x": "y"}, "a": {"data_offsets": [0, 2**20]}, "b": {"data_offsets": [2**20, 2**21]}}
        text = json.dumps(header).encode()
        (tmp_path / f"{number}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert stored_gib(tmp_path) == pytest.approx(4 / 1024)
