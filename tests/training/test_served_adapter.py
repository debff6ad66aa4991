"""An adapter as vLLM takes it: the same update in bf16, in PEFT's names, with the words that serve it."""

from __future__ import annotations

import errno
import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pipelines.artifacts import Adapter, BaseSnapshot
from pipelines.errors import ExportRejected, MachineUnfit
from pipelines.system.manifest import read_manifest, verify_manifest
from tests.training.parts import adapted_model, store_adapter
from training.merge import LoraReader
from training.peft_layout import CONFIG, WEIGHTS
from training.served_adapter import MAX_RANKS, ServedAdapter, export_adapter
from training.weights.checkpoint import open_checkpoint

MADE_FROM = {"base": "b" * 64, "adapter": "a" * 64}


def exported(base: BaseSnapshot, adapter: Path, out: Path) -> ServedAdapter:
    lora = LoraReader(adapter, open_checkpoint(base.path, base.digest).experts)
    return export_adapter(lora, base.path, out, MADE_FROM)


def test_the_update_is_the_same_rounded_to_bf16(any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path) -> None:
    served = exported(any_base, adapter.path, tmp_path / "tuned")
    before, after = load_file(adapter.path / WEIGHTS), load_file(served.path / WEIGHTS)
    assert served.tensors == len(before) == len(after)
    assert all(torch.equal(after[name], tensor.to(torch.bfloat16)) for name, tensor in before.items())
    assert served.size_bytes < 0.6 * (adapter.path / WEIGHTS).stat().st_size
    verify_manifest(served.path)
    assert read_manifest(served.path)["made_from"] == MADE_FROM
    assert {file.name for file in served.path.iterdir()} == {WEIGHTS, CONFIG, "manifest.json"}


def test_stock_peft_loads_it_without_a_word(
    any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    served = exported(any_base, adapter.path, tmp_path / "tuned")
    model = AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.float32)
    PeftModel.from_pretrained(model, served.path)
    assert not [warning for warning in recwarn if "missing" in str(warning.message).lower()]


def test_the_machine_that_trained_is_not_named(any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path) -> None:
    file = adapter.path / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(any_base.path)}))
    served = exported(any_base, adapter.path, tmp_path / "tuned")
    options = json.loads((served.path / CONFIG).read_text())
    assert options["base_model_name_or_path"] is None
    assert (options["r"], options["lora_alpha"], options["bias"]) == (4, 8.0, "none")


def test_engines_are_told_of_stacks_of_experts(any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path) -> None:
    served = exported(any_base, adapter.path, tmp_path / "tuned")
    has_experts = "Moe" in any_base.architecture
    stacks = {"is_3d_lora_weight": True} if has_experts else {}
    assert served.request == {"lora_name": "tuned", "lora_path": str(tmp_path / "tuned"), **stacks}
    words = shlex.split(served.command)
    assert words[:4] == ["vllm", "serve", str(any_base.path), "--enable-lora"]
    assert words[words.index("--max-lora-rank") + 1] == "8"
    module = json.loads(words[words.index("--lora-modules") + 1])
    assert module == {"name": "tuned", "path": str(tmp_path / "tuned"), "is_3d_lora_weight": has_experts}
    assert "--enable-tower-connector-lora" not in words


@given(rank=st.integers(1, MAX_RANKS[-1]))
def test_room_for_the_rank_is_asked_for(rank: int) -> None:
    served = ServedAdapter(Path("a"), Path("b"), rank, 2, 1, updates_experts=False, updates_vision=True)
    room = int(served.flags[served.flags.index("--max-lora-rank") + 1])
    assert room >= rank
    assert room in MAX_RANKS
    assert "--enable-tower-connector-lora" in served.flags


def test_a_rank_that_vllm_has_no_kernel_for_is_refused(dense_base: BaseSnapshot, tmp_path: Path) -> None:
    rank = MAX_RANKS[-1] + 1
    adapter = store_adapter(adapted_model(dense_base, rank)[1], dense_base, tmp_path / "adapter", rank)
    with pytest.raises(ExportRejected, match=r"rank 513, and vLLM serves up to 512; leave out --adapter-only"):
        exported(dense_base, adapter.path, tmp_path / "tuned")


def test_a_disk_that_fills_up_is_named(
    dense_base: BaseSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    adapter = store_adapter(adapted_model(dense_base)[1], dense_base, tmp_path / "adapter")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MachineUnfit, match="tuned: the disk is full"):
        exported(dense_base, adapter.path, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_half_of_the_experts_is_refused(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    tensors = load_file(adapter.path / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "base_layer" not in name}, adapter.path / WEIGHTS)
    with pytest.raises(ExportRejected, match=r"updates down_proj of .*experts and not the other stack"):
        exported(moe_base, adapter.path, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
