"""An adapter on disk is PEFT's: stock PEFT loads it on the bf16 base and computes what we trained."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from pipelines.artifacts import BaseSnapshot
from pipelines.system.manifest import read_manifest
from tests.training.parts import adapted_model, store_adapter
from training.adapter import LoraShape, pack_experts, peft_config, read_weights, save_adapter, unpack_experts
from training.layers.nf4 import PackedStack
from training.model import Targets, attach_lora, load_quantized

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def _unquantize(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Give PEFT's base the very weights that the packed model computes with."""
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, PackedStack):
            getattr(reference.get_submodule(parent), leaf).copy_(module.unpack(torch.float32))
        elif type(module).__name__ == "Linear4bit":
            eye = torch.eye(module.in_features)
            reference.get_submodule(name.removesuffix(".base")).weight.copy_(module(eye).T)


def test_stock_peft_computes_the_same_logits(any_base: BaseSnapshot, tmp_path: Path) -> None:
    model, adapted = adapted_model(any_base)
    store_adapter(adapted, any_base, tmp_path / "adapter")
    reference = AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.float32)
    _unquantize(model, reference)
    with torch.no_grad():
        plain = reference(input_ids=IDS).logits
        ours = model.eval()(input_ids=IDS).logits
        loaded = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
        theirs = loaded(input_ids=IDS).logits
        merged = loaded.merge_and_unload()(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(merged, theirs, rtol=1e-3, atol=1e-3)
    assert float((theirs - plain).norm() / plain.norm()) > 0.05  # and it does something


@pytest.mark.parametrize("targets", get_args(Targets))
def test_names_and_shapes_are_those_that_peft_would_write(
    targets: Targets, any_base: BaseSnapshot, tmp_path: Path
) -> None:
    adapted = attach_lora(load_quantized(any_base.path, torch.float32, "cpu"), targets, 4, 8, seed=1)
    shape = LoraShape(targets, 4, 8)
    save_adapter(adapted, shape, any_base.digest, tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    stock = AutoModelForImageTextToText.from_pretrained(any_base.path)
    wrapped = get_peft_model(stock, peft_config(adapted, shape))
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_weights_come_back_bit_for_bit(any_base: BaseSnapshot, tmp_path: Path) -> None:
    _, adapted = adapted_model(any_base)
    stored = store_adapter(adapted, any_base, tmp_path / "adapter")
    other = attach_lora(load_quantized(any_base.path, torch.float32, "cpu"), "attention+experts", 4, 8, seed=9)
    read_weights(other, stored.path)
    for name, module in adapted.items():
        assert torch.equal(module.a, other[name].a)
        assert torch.equal(module.b, other[name].b)


def test_the_manifest_names_the_base(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    _, adapted = adapted_model(moe_base)
    stored = store_adapter(adapted, moe_base, tmp_path / "adapter")
    assert read_manifest(stored.path)["base"] == moe_base.digest
    assert not list(tmp_path.glob(".*"))


@given(experts=st.integers(1, 5), rank=st.integers(1, 4), out=st.integers(1, 6), width=st.integers(1, 6))
def test_unpacking_undoes_packing(experts: int, rank: int, out: int, width: int) -> None:
    a, b = torch.randn(experts, rank, width), torch.randn(experts, out, rank)
    again = unpack_experts(*pack_experts(a, b), experts)
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)
