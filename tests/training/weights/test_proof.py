"""Matrices computed again in float64: a right export passes, and every way to be wrong that keeps shapes is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import ExportRejected
from pipelines.schemes import Name, Scheme, scheme_of
from tests.training.parts import adapted_model, store_adapter
from training.provenance import open_update
from training.weights.checkpoint import Checkpoint, Update, open_checkpoint
from training.weights.making import make
from training.weights.proof import prove
from training.weights.stream import Pass

Tensors = dict[str, torch.Tensor]
INT8 = scheme_of("int8_w8a8")


@dataclass(frozen=True)
class Exported:
    """A model and what it was made of."""

    folder: Path
    checkpoint: Checkpoint
    update: Update


@pytest.fixture(scope="module")
def exported(moe_base: BaseSnapshot, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    home = tmp_path_factory.mktemp("proof")
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, home / "adapter")
    checkpoint = open_checkpoint(moe_base.path, moe_base.digest)
    update = open_update(adapter.path, adapter.digest, checkpoint)
    return Exported(_make(checkpoint, update, INT8, home), checkpoint, update)


def _make(checkpoint: Checkpoint, update: Update | None, scheme: Scheme, home: Path) -> Path:
    make(Pass(checkpoint, update, {"model": scheme}, 1e9), home, None, {}).seal()
    return home / "model"


@pytest.mark.parametrize("name", ["int8_w8a8", "int8_w8a16", "int4_w4a16", "bf16"])
@pytest.mark.parametrize("adapted", [True, False])
def test_what_we_write_is_proven(name: str, adapted: bool, exported: Exported, tmp_path: Path) -> None:
    scheme, update = scheme_of(name, 32), exported.update if adapted else None  # type: ignore[arg-type]
    folder = _make(exported.checkpoint, update, scheme, tmp_path)
    assert prove(folder, exported.checkpoint, update, scheme) == 24


def _expert(tensors: Tensors, part: str, of: str = "weight") -> torch.Tensor:
    return tensors[f"model.language_model.layers.0.mlp.experts.0.{part}_proj.{of}"]


def _swap(tensors: Tensors) -> None:
    gate, up = _expert(tensors, "gate").clone(), _expert(tensors, "up").clone()
    _expert(tensors, "gate").copy_(up)
    _expert(tensors, "up").copy_(gate)


SPOILS: dict[str, Callable[[Tensors], object]] = {
    "gate and up swapped": _swap,
    "a scale doubled": lambda t: _expert(t, "down", "weight_scale").mul_(2),
    "rows in another order": lambda t: _expert(t, "down").copy_(_expert(t, "down").roll(1, 0)),
    "columns in another order": lambda t: _expert(t, "down").copy_(_expert(t, "down").roll(1, 1)),
    "steps two off": lambda t: _expert(t, "down").sub_(2 * _expert(t, "down").sign()),
    "one bit": lambda t: _expert(t, "down").view(-1)[:1].bitwise_xor_(64),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_every_mistake_that_keeps_shapes_is_found(
    spoil: Callable[[Tensors], object], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.weights.proof.SAMPLES", 1000)
    folder = shutil.copytree(exported.folder, tmp_path / "model")
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    with pytest.raises(ExportRejected, match=r"layers\.0\.mlp\.experts\.0\."):
        prove(folder, exported.checkpoint, exported.update, INT8)


@pytest.mark.parametrize("name", ["int8_w8a8", "bf16"])
def test_a_merge_that_was_left_out_is_found(name: Name, exported: Exported, tmp_path: Path) -> None:
    folder = _make(exported.checkpoint, None, scheme_of(name), tmp_path)
    with pytest.raises(ExportRejected, match=r"not the (rounding|sum) of base and adapter|not its largest weight"):
        prove(folder, exported.checkpoint, exported.update, scheme_of(name))


@pytest.mark.parametrize("fault", [_swap, lambda tensors: _expert(tensors, "down").view(-1)[:1].mul_(1.1)])
def test_a_merge_into_other_matrices_is_found(
    fault: Callable[[Tensors], object], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.weights.proof.SAMPLES", 1000)
    folder = _make(exported.checkpoint, exported.update, scheme_of("bf16"), tmp_path)
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    fault(tensors)
    save_file(tensors, file)
    with pytest.raises(ExportRejected, match=r"not the sum of base and adapter"):
        prove(folder, exported.checkpoint, exported.update, scheme_of("bf16"))
