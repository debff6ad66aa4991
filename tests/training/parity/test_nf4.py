"""NF4 matrix by matrix has the bits of the trainer's packing of whole stacks and layers."""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit

from pipelines.artifacts import BaseSnapshot
from training.layers.nf4 import PackedStack, unpack_linear
from training.model import load_quantized
from training.parity.nf4 import Packing, is_packed
from training.parity.variants import Original


def _packing(base: Path) -> Packing:
    original = Original(base, None, "cpu")
    return Packing(original.planned, original.stored)


def test_a_matrix_is_restored_as_the_trainer_has_it(any_base: BaseSnapshot) -> None:
    packing = _packing(any_base.path)
    compared = 0
    for name, module in load_quantized(any_base.path, torch.float32, "cpu").named_modules():
        if isinstance(module, Linear4bit):
            assert torch.equal(packing.restored(f"{name}.weight"), unpack_linear(module, torch.float32)), name
            compared += 1
        elif isinstance(module, PackedStack):
            experts, _, leaf = name.rpartition(".")
            parts = ("gate", "up") if leaf == "gate_up_proj" else ("down",)
            for expert, matrix in enumerate(module.unpack(torch.float32)):
                found = [packing.restored(f"{experts}.{expert}.{part}_proj.weight") for part in parts]
                assert torch.equal(torch.cat(found), matrix), (name, expert)
                compared += len(found)
    assert compared == sum(map(is_packed, packing.planned)) > 20
