"""An update is held against the weights that it changes, before these are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import ExportRejected
from tests.training.parts import adapted_model, store_adapter
from training.merge import LoraReader
from training.weights.checkpoint import open_checkpoint
from training.weights.delta import relative_norms


def _norms(base: BaseSnapshot, folder: Path, factor: float) -> dict[str, float]:
    _, adapted = adapted_model(base)
    with torch.no_grad():
        for module in adapted.values():
            module.b.mul_(factor)
    checkpoint = open_checkpoint(base.path, base.digest)
    return relative_norms(checkpoint, LoraReader(store_adapter(adapted, base, folder).path, checkpoint.experts))


def test_the_sample_of_a_weight_tells_its_norm(any_base: BaseSnapshot, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(any_base.path, any_base.digest)
    norms = _norms(any_base, tmp_path / "a", 1.0)
    lora = LoraReader(tmp_path / "a", checkpoint.experts)
    for name, norm in norms.items():
        [source] = {one.source.name: one.source for one in checkpoint.planned if one.target == name}.values()
        assert norm == pytest.approx(lora.norms[name] / float(source.read().float().norm()), rel=0.1)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_an_update_out_of_all_range_is_refused_by_name(factor: float, any_base: BaseSnapshot, tmp_path: Path) -> None:
    with pytest.raises(
        ExportRejected, match=r"the update of model\..* is .* of the weight's norm, and 1e-06 to 10 is sane"
    ):
        _norms(any_base, tmp_path / "a", factor)
