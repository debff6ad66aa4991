"""The tiny bases with an adapter, exported, and prompts for them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipelines.artifacts import BaseSnapshot
from pipelines.parity import Parity
from tests.training.parity.parts import Tensors, change, write_merged, write_quantized
from tests.training.parts import adapted_model, store_adapter
from training.chat.encoding import Encoder, load_processor
from training.parity.measure import measure_parity
from training.parity.prompts import Prompt, draw_prompts


@dataclass(frozen=True)
class Exported:
    """A base, an adapter and what was made of them."""

    base: Path
    adapter: Path
    merged: Path
    int8: Path
    folder: Path
    prompts: list[Prompt]

    def measure(
        self, exported: Path, merged: Path | None = None, adapter: Path | None = None, device: str = "cpu"
    ) -> Parity:
        """Compare, on a CPU unless told."""
        adapter = adapter or self.adapter
        golden = self.folder / "golden"
        return measure_parity(self.base, adapter, exported, merged, self.prompts, device=device, folder=golden)


@pytest.fixture(scope="session")
def moe(moe_base: BaseSnapshot, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A mixture of experts."""
    return export(_decided(moe_base, tmp_path_factory.mktemp("moe")), tmp_path_factory.mktemp("moe-exported"))


@pytest.fixture(scope="session")
def dense(dense_base: BaseSnapshot, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its dense sister."""
    return export(_decided(dense_base, tmp_path_factory.mktemp("dense")), tmp_path_factory.mktemp("dense-exported"))


@pytest.fixture(params=["moe", "dense"])
def either(request: pytest.FixtureRequest) -> Exported:
    """Either of them."""
    found: Exported = request.getfixturevalue(request.param)
    return found


def _decided(base: BaseSnapshot, folder: Path) -> BaseSnapshot:
    """A copy whose layers matter and whose predictions differ, as a trained model's.

    After a few steps every token is about as likely as any other, and SwiGLU at small values is nearly the product of
    gate and up, so that which is which makes no difference.
    """

    def decide(tensors: Tensors) -> None:
        tensors["lm_head.weight"] *= 8
        for name in tensors:
            if re.search(r"mlp\.(experts\.gate_up_proj|(gate|up)_proj\.weight)", name):
                tensors[name] *= 4

    copy = shutil.copytree(base.path, folder / "base")
    change(copy, decide)
    return base.model_copy(update={"path": copy})


def export(base: BaseSnapshot, folder: Path) -> Exported:
    """With an adapter of random weights."""
    _, adapted = adapted_model(base)
    with torch.no_grad():
        for module in adapted.values():
            module.b.normal_(std=0.1)
    adapter = store_adapter(adapted, base, folder / "adapter").path
    merged = write_merged(base.path, adapter, folder / "merged")
    int8 = write_quantized(merged, folder / "int8", "int8_w8a8")
    prompts = draw_prompts(folder / "drawn", Encoder(load_processor(base.path, 4096, 65536)), 5)
    return Exported(base.path, adapter, merged, int8, folder, prompts)
