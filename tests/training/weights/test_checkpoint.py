"""A base by its headers: refused where an export of it would be incomplete, rounded twice, or of two bases at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import ExportRejected
from pipelines.schemes import SCHEMES
from pipelines.system.durable import commit
from training.weights import writer
from training.weights.checkpoint import file_state, open_checkpoint
from training.weights.making import make
from training.weights.shards import INDEX
from training.weights.stream import Pass

Tensors = dict[str, torch.Tensor]

EXPERTS = "model.language_model.layers.0.mlp.experts"
INT8 = SCHEMES["int8_w8a8"]


@pytest.fixture
def base(moe_base: BaseSnapshot, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(moe_base.path, tmp_path / "base")


@pytest.fixture
def single(moe_base: BaseSnapshot, tmp_path: Path) -> Path:
    """The same with a matrix for each projection of each expert."""
    checkpoint = open_checkpoint(moe_base.path, moe_base.digest)
    make(Pass(checkpoint, None, {"single": SCHEMES["bf16"]}, 5e9), tmp_path, None, {}).seal()
    (tmp_path / "single" / INDEX).unlink()
    return tmp_path / "single"


def change(folder: Path, how: Callable[[Tensors], object]) -> None:
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def test_an_export_in_int8_is_no_base(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    """Its steps would be taken for weights, and an adapter be added to them."""
    checkpoint = open_checkpoint(moe_base.path, moe_base.digest)
    make(Pass(checkpoint, None, {"int8": INT8}, 5e9), tmp_path, None, {}).seal()
    with pytest.raises(ExportRejected, match="is quantised already"):
        open_checkpoint(tmp_path / "int8", "")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "int8" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportRejected, match="is quantised already"):
        open_checkpoint(tmp_path / "int8", "")


def test_a_file_without_tensors_is_no_base(base: Path) -> None:
    change(base, dict.clear)
    with pytest.raises(ExportRejected, match="hold no tensor"):
        open_checkpoint(base, "")


def test_a_stack_that_is_missing_is_found(base: Path) -> None:
    change(base, lambda tensors: tensors.pop(f"{EXPERTS}.down_proj"))
    with pytest.raises(ExportRejected, match=r"layers\.0\.mlp\.experts has 12 matrices, .* makes it 6 experts of 3"):
        open_checkpoint(base, "")


def test_an_expert_that_is_missing_is_found(single: Path) -> None:
    open_checkpoint(single, "")
    change(single, lambda tensors: tensors.pop(f"{EXPERTS}.5.up_proj.weight"))
    with pytest.raises(ExportRejected, match="has 17 matrices"):
        open_checkpoint(single, "")


@pytest.mark.parametrize(
    ("name", "shape"), [(f"{EXPERTS}.6.up_proj.weight", (96, 128)), (f"{EXPERTS}.0.up_proj.weight", (128, 96))]
)
def test_an_expert_that_the_config_does_not_have_is_found(name: str, shape: tuple[int, int], single: Path) -> None:
    change(single, lambda tensors: tensors.update({name: torch.ones(shape, dtype=torch.bfloat16)}))
    with pytest.raises(ExportRejected, match=r"up_proj\.weight .*config\.json makes it 6 experts"):
        open_checkpoint(single, "")


def test_experts_of_an_architecture_that_is_not_known_are_refused(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    del config["text_config"]["moe_intermediate_size"]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportRejected, match="6 experts and no moe_intermediate_size"):
        open_checkpoint(base, "")


def test_a_base_that_changes_while_it_is_read_is_not_exported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_late(partial: Path, path: Path) -> None:
        (base / "model.safetensors").touch()
        commit(partial, path)

    monkeypatch.setattr(writer, "commit", commit_late)
    with pytest.raises(ExportRejected, match="was changed while it was exported"):
        make(Pass(open_checkpoint(base, "x"), None, {"model": INT8}, 5e9), tmp_path / "out", None, {})


def test_the_state_changes_with_weights_and_config_and_a_copy_of_all_has_the_same(base: Path, tmp_path: Path) -> None:
    before = file_state(base)
    assert file_state(shutil.copytree(base, tmp_path / "copy")) == before
    (base / "manifest.json").touch()
    assert file_state(base) == before
    (base / "config.json").write_text("{}")
    config = file_state(base)
    change(base, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert len({before, config, file_state(base)}) == 3
