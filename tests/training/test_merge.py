"""The adapter as export reads it: the right update for each tensor, and no adapter that would merge wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import ExportRejected
from tests.training.parts import adapted_model, store_adapter
from training.experts import ExpertLora
from training.merge import UNDERSTOOD, ExpertShape, LoraReader, add_update
from training.model import Adapted
from training.weights.layout import expert_shape

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(moe_base: BaseSnapshot, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Adapted]]:
    _, adapted = adapted_model(moe_base)
    return store_adapter(adapted, moe_base, tmp_path_factory.mktemp("merge") / "adapter").path, adapted


@pytest.fixture
def shape(moe_base: BaseSnapshot) -> ExpertShape:
    experts = expert_shape(json.loads((moe_base.path / "config.json").read_text()))
    assert experts
    return experts


@pytest.fixture
def folder(trained: tuple[Path, dict[str, Adapted]], tmp_path: Path) -> Path:
    return shutil.copytree(trained[0], tmp_path / "adapter")


def _dense(reader: LoraReader, name: str, expert: int | None = None, rows: slice = slice(None)) -> torch.Tensor:
    update = reader.update(name, expert, rows)
    assert update
    return update.dense()


def test_every_target_gets_its_own_update(trained: tuple[Path, dict[str, Adapted]], shape: ExpertShape) -> None:
    reader = LoraReader(trained[0], shape)
    for name, module in trained[1].items():
        full = (module.scale * module.b @ module.a).detach()
        if isinstance(module, ExpertLora):
            for expert in range(shape.experts):
                torch.testing.assert_close(_dense(reader, name, expert), full[expert])
            torch.testing.assert_close(_dense(reader, name, 1, slice(3, 9)), full[1, 3:9])
        else:
            torch.testing.assert_close(_dense(reader, f"{name}.weight"), full)
    assert len(reader.targets) == len(trained[1])


def test_norms_are_those_of_the_whole_update(trained: tuple[Path, dict[str, Adapted]], shape: ExpertShape) -> None:
    reader = LoraReader(trained[0], shape)
    for name, module in trained[1].items():
        target = name if isinstance(module, ExpertLora) else f"{name}.weight"
        assert reader.norms[target] == pytest.approx(float((module.scale * module.b @ module.a).norm()), rel=1e-4)


def test_many_threads_read_the_same(trained: tuple[Path, dict[str, Adapted]], shape: ExpertShape) -> None:
    reader, alone = LoraReader(trained[0], shape), LoraReader(trained[0], shape)
    stacks = [name for name, module in trained[1].items() if isinstance(module, ExpertLora)]
    asked = [(name, expert) for _ in range(5) for expert in range(shape.experts) for name in stacks]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: _dense(reader, *one), asked))
    assert all(torch.equal(update, _dense(alone, *one)) for update, one in zip(found, asked, strict=True))


def test_other_tensors_have_none(trained: tuple[Path, dict[str, Adapted]], shape: ExpertShape) -> None:
    assert LoraReader(trained[0], shape).update("lm_head.weight") is None


def _first(tensors: Tensors, mark: str) -> str:
    return next(name for name in tensors if mark in name)


SPOILS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "NaN": (lambda t: t[_first(t, "q_proj.lora_A")].view(-1)[3].fill_(float("nan")), "q_proj.weight holds NaN"),
    "infinity": (
        lambda t: t[_first(t, "experts.lora_B")].view(-1)[3].fill_(float("inf")),
        "down_proj holds NaN or inf",
    ),
    "all zero": (lambda t: t[_first(t, "base_layer.lora_B")].zero_(), "gate_up_proj is all zero"),
    "no partner": (lambda t: t.pop(_first(t, "v_proj.lora_B")), "has no"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "nothing is known to do with extra"),
    "another rank": (
        lambda t: t.update({_first(t, "q_proj.lora_A"): torch.ones(3, t[_first(t, "q_proj.lora_A")].shape[1])}),
        "q_proj.lora_A.weight is .3, .* not rank 4",
    ),
    "empty": (lambda t: t.clear(), "holds no update"),
    "several dimensions": (
        lambda t: t.update({_first(t, "q_proj.lora_A"): torch.ones(4, 2, 2, 2)}),
        r"q_proj.lora_A.weight is .4, 2, 2, 2., and only matrices",
    ),
    "twice": (
        lambda t: t.update({n.replace("base_layer.", ""): t[n].clone() for n in t if "experts.base_layer" in n}),
        "is a second update of .*gate_up_proj",
    ),
    "no stack": (lambda t: t.update({_first(t, "experts.lora_A"): torch.ones(24, 7)}), "fits no stack"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS.keys())
def test_a_broken_adapter_is_refused_by_name(
    spoil: Callable[[Tensors], object], message: str, folder: Path, shape: ExpertShape
) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ExportRejected, match=message):
        LoraReader(folder, shape)


FLAVOURS: list[dict[str, object]] = [
    *({"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}, {"bias": "all"}),
    *({"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"layer_replication": [[0, 2]]}, {"use_qalora": True}),
    *({"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "loftq"}, {"peft_type": "ADALORA"}),
    *({"alora_invocation_tokens": [1]}, {"trainable_token_indices": [3]}, {"fan_in_fan_out": True}),
    {"an_option_of_next_year": 1},
]


@pytest.mark.parametrize("option", FLAVOURS, ids=lambda option: next(iter(option)))
def test_flavours_that_merge_otherwise_are_refused(option: dict[str, object], folder: Path, shape: ExpertShape) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | option))
    with pytest.raises(ExportRejected, match=next(iter(option))):
        LoraReader(folder, shape)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"r": "many", "lora_alpha": 8}', '{"r": 4}'])
def test_a_config_that_is_none_of_lora_is_refused(text: str, folder: Path, shape: ExpertShape) -> None:
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ExportRejected, match="no config of a LoRA adapter"):
        LoraReader(folder, shape)


def test_an_adapter_that_is_cut_short_is_refused(folder: Path, shape: ExpertShape) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ExportRejected, match="cut short"):
        LoraReader(folder, shape)


def test_every_option_that_stock_peft_writes_is_understood(folder: Path) -> None:
    """What a plain adapter does not use, it writes as nothing."""
    LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True).save_pretrained(str(folder))
    options = json.loads((folder / "adapter_config.json").read_text())
    assert {option for option, value in options.items() if value} <= UNDERSTOOD
    assert UNDERSTOOD - options.keys() <= {"runtime_config"}


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused(missing: str, folder: Path, shape: ExpertShape) -> None:
    (folder / missing).unlink()
    with pytest.raises(ExportRejected, match="no adapter of PEFT"):
        LoraReader(folder, shape)


def test_an_adapter_of_experts_is_refused_for_a_dense_base(folder: Path) -> None:
    with pytest.raises(ExportRejected, match="the base is dense"):
        LoraReader(folder, None)


@given(rows=st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=8), delta=st.floats(-1, 1))
def test_the_sum_is_rounded_once(rows: list[float], delta: float) -> None:
    weight = torch.tensor([rows], dtype=torch.bfloat16)
    update = torch.full_like(weight, delta, dtype=torch.float32)
    merged = add_update(weight, update)
    assert merged.dtype == torch.bfloat16
    exact = weight.double() + update.double()
    assert torch.equal(merged, exact.float().bfloat16())
