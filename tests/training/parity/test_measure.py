"""The comparison as a whole: what is right agrees, and every way in which an export has been wrong is far beyond."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.config_export import Parity as Limits
from pipelines.errors import ExportRejected
from pipelines.parity import read_golden_prompts, require_parity
from pipelines.schemes import SCHEMES, Name
from tests.training.parity.conftest import Exported
from tests.training.parity.parts import Tensors, change, write_merged, write_quantized
from training.adapter import WEIGHTS
from training.parity import measure
from training.parity.measure import TOP

LIMITS = Limits()
FAR = 3
"""Times the limit that every fault must cost at least."""


def test_a_right_export_agrees(either: Exported) -> None:
    parity = either.measure(either.int8)
    assert parity.merged
    assert parity.merged.mean_kl < 1e-3
    assert parity.exported.mean_kl < LIMITS.max_kl / 5
    assert 0 < parity.exported.mean_kl < parity.nf4.mean_kl
    assert (parity.prompts, parity.images) == (5, 5)
    assert parity.nf4.positions == parity.exported.positions > 20
    require_parity(parity, SCHEMES["int8_w8a8"], LIMITS)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(either: Exported) -> None:
    gpu, cpu = either.measure(either.int8, device="cuda"), either.measure(either.int8)
    assert gpu.exported.positions == cpu.exported.positions
    for ours, theirs in ((gpu.exported, cpu.exported), (gpu.nf4, cpu.nf4), (gpu.base, cpu.base)):
        assert ours.mean_kl == pytest.approx(theirs.mean_kl, rel=0.3, abs=1e-4)
    require_parity(gpu, SCHEMES["int8_w8a8"], LIMITS)


def test_the_merge_computed_is_the_merge_written(either: Exported) -> None:
    computed, written = either.measure(either.int8).merged, either.measure(either.int8, either.merged).merged
    assert computed
    assert written
    assert computed.mean_kl == pytest.approx(written.mean_kl, rel=0.05, abs=1e-7)


def test_more_tokens_than_go_through_at_once_change_nothing(dense: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    together = dense.measure(dense.int8)
    monkeypatch.setattr(measure, "TOKENS", 64)
    monkeypatch.setattr(measure, "PREDICTIONS", 3)
    apart = dense.measure(dense.int8)
    assert apart.exported.mean_kl == pytest.approx(together.exported.mean_kl, rel=1e-2)
    assert apart.nf4.positions == together.nf4.positions


def test_a_tensor_that_is_missing_is_named(dense: Exported, tmp_path: Path) -> None:
    def lose(tensors: Tensors) -> None:
        del tensors["model.language_model.norm.weight"]

    change(write_quantized(dense.merged, tmp_path / "int8", "int8_w8a8"), lose)
    with pytest.raises(ExportRejected, match=r"holds no model\.language_model\.norm\.weight"):
        dense.measure(tmp_path / "int8")


def test_a_base_that_lacks_a_tensor_is_named(dense: Exported, tmp_path: Path) -> None:
    base = shutil.copytree(dense.base, tmp_path / "base")
    change(base, lambda tensors: tensors.pop("model.language_model.layers.1.input_layernorm.weight"))
    with pytest.raises(ExportRejected, match=r"holds no model\.language_model\.layers\.1\.input_layernorm\.weight"):
        replace(dense, base=base).measure(dense.int8)


def test_a_merge_only_has_no_second_merge(either: Exported) -> None:
    parity = either.measure(either.merged)
    assert parity.merged is None
    assert parity.exported.mean_kl < 1e-3


@pytest.mark.parametrize(("scheme", "most"), [("int8_w8a16", 0.01), ("int4_w4a16", 0.25)])
def test_packed_schemes_are_read(scheme: Name, most: float, either: Exported, tmp_path: Path) -> None:
    found = either.measure(write_quantized(either.merged, tmp_path / "packed", scheme)).exported
    assert 0 < found.mean_kl < most


def _swap_gate_and_up(tensors: Tensors) -> None:
    for name in [name for name in tensors if "gate_proj" in name]:
        other = name.replace("gate_proj", "up_proj")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def _double_the_scales_of_a_layer(tensors: Tensors) -> None:
    for name in tensors:
        if re.search(r"layers\.1\..*_scale", name):
            tensors[name] *= 2


def _flip_a_bit(tensors: Tensors) -> None:
    """Of one scale of one row: 256 times what it was."""
    name = next(name for name in tensors if re.search(r"layers\.1\..*o_proj\.weight_scale", name))
    tensors[name].view(torch.int16)[7] ^= 1 << 10


def _roll_a_matrix(tensors: Tensors) -> None:
    """A square one, its rows for its columns: the shape tells nothing."""
    name = next(n for n, t in tensors.items() if re.search(r"layers\.0\..*q_proj\.weight$", n))
    tensors[name] = (
        tensors[name].T.contiguous() if tensors[name].shape[0] == tensors[name].shape[1] else tensors[name].roll(1, 1)
    )


@pytest.mark.parametrize("fault", [_swap_gate_and_up, _double_the_scales_of_a_layer, _flip_a_bit, _roll_a_matrix])
def test_wrong_weights_are_far_beyond_the_limits(
    fault: Callable[[Tensors], None], either: Exported, tmp_path: Path
) -> None:
    change(write_quantized(either.merged, tmp_path / "int8", "int8_w8a8"), fault)
    parity = either.measure(tmp_path / "int8")
    assert parity.exported.mean_kl > FAR * LIMITS.max_kl
    with pytest.raises(ExportRejected, match=r"exported model.*allowed are 0\.05 \(max_kl\)"):
        require_parity(parity, SCHEMES["int8_w8a8"], LIMITS)


def test_a_missing_adapter_is_far_beyond_the_limits(either: Exported, tmp_path: Path) -> None:
    plain = write_merged(either.base, None, tmp_path / "plain")
    parity = either.measure(write_quantized(plain, tmp_path / "int8", "int8_w8a8"), plain)
    assert parity.merged
    assert min(parity.merged.mean_kl, parity.exported.mean_kl) > FAR * LIMITS.max_kl
    with pytest.raises(ExportRejected, match="merged model"):
        require_parity(parity, SCHEMES["int8_w8a8"], LIMITS)


def test_a_light_adapter_is_missed_too(tmp_path: Path, dense: Exported) -> None:
    """What was learned is below the limit itself, and still none of it may be lost."""
    light = shutil.copytree(dense.adapter, tmp_path / "light")
    weights = load_file(light / WEIGHTS)
    save_file({name: t * 0.02 if "lora_B" in name else t for name, t in weights.items()}, light / WEIGHTS)
    plain = write_merged(dense.base, None, tmp_path / "plain")
    lost = dense.measure(plain, adapter=light)
    assert lost.exported.mean_kl < LIMITS.max_kl
    with pytest.raises(ExportRejected, match="max_share"):
        require_parity(lost, SCHEMES["bf16"], LIMITS)
    kept = dense.measure(write_merged(dense.base, light, tmp_path / "merged"), adapter=light)
    require_parity(kept, SCHEMES["bf16"], LIMITS)


def test_the_reference_is_kept_for_the_served_model(either: Exported) -> None:
    parity = either.measure(either.int8)
    prompts = read_golden_prompts(parity.golden)
    assert len(prompts) == 5
    assert sum(len(prompt.positions) for prompt in prompts) == parity.exported.positions
    for prompt in prompts:
        assert len(prompt.positions) == len(prompt.top_ids) == len(prompt.top_logprobs)
        assert {len(ids) for ids in prompt.top_ids} == {TOP}
        assert all(list(row) == sorted(row, reverse=True) and max(row) <= 0 for row in prompt.top_logprobs)
        [image] = {part["image"] for part in prompt.messages[0]["content"] if part["type"] == "image"}
        assert (parity.golden.parent / image).is_file()
        assert prompt.messages[-1]["role"] == "assistant"
    assert len(json.loads(parity.golden.read_text().splitlines()[0])["token_ids"]) > max(prompts[0].positions)
