"""The export step where a version is an adapter: one base for all runs, the adapter alone in the run, both proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.errors import ExportRejected
from pipelines.settings import Settings
from pipelines.system.manifest import read_manifest, verify_manifest
from tests.training.parts import Configure, adapted_model, store_adapter
from training.export import export

ALONE = ("export.artifact=adapter", "export.keep_merged=false", "export.parity.prompts=2")
ON_A_CARD = (*ALONE, "hardware=l40s_48gb", "export.device=cpu")


@pytest.fixture(autouse=True)
def _machine(settings: Settings) -> None:
    """A cache of our own, for the exported base."""


def _trained(base: BaseSnapshot, folder: Path) -> Adapter:
    _, adapted = adapted_model(base)
    return store_adapter(adapted, base, folder)


def test_two_runs_share_a_base_that_is_written_once(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    config = configure(*ON_A_CARD)
    first = export(config, tmp_path / "first", any_base, data, adapter)
    assert first.served_base_path is not None
    weights = first.served_base_path / "model.safetensors.index.json"
    written = weights.stat().st_mtime_ns
    second = export(config, tmp_path / "second", any_base, data, adapter)
    assert second.served_base_path == first.served_base_path == first.quantized_base_path
    assert weights.stat().st_mtime_ns == written
    assert (first.path, second.path) == (tmp_path / "first" / "adapter", tmp_path / "second" / "adapter")
    verify_manifest(first.served_base_path, first.served_base_digest)
    verify_manifest(first.path, first.digest)
    manifest = read_manifest(first.path)
    assert manifest["made_from"] == {
        "base": any_base.digest, "adapter": adapter.digest, "served_base": first.served_base_digest,
    }  # fmt: skip
    assert manifest["lora"] == {"max_rank": 8, "experts": "Moe" in any_base.architecture, "vision": False}


def test_base_and_adapter_are_held_against_what_was_trained(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    adapter = _trained(moe_base, tmp_path / "trained")
    parity = export(configure(*ON_A_CARD), tmp_path, moe_base, data, adapter).parity
    assert parity is not None
    assert parity.base is not None
    assert parity.merged is None
    assert 0 < parity.exported.mean_kl < 0.1 * parity.base.mean_kl
    assert parity.golden.is_file()
    with pytest.raises(ExportRejected, match="the exported model does not predict"):
        export(configure(*ON_A_CARD, "export.parity.max_kl=1e-9"), tmp_path / "strict", moe_base, data, adapter)


def test_in_bf16_the_published_base_is_served(
    dense_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    adapter, config = _trained(dense_base, tmp_path / "trained"), configure(*ALONE, "export.scheme=bf16")
    model = export(config, tmp_path, dense_base, data, adapter)
    assert (model.served_base_path, model.served_base_digest) == (dense_base.path, dense_base.digest)
    assert model.quantized_base_path is None
    elsewhere = dense_base.model_copy(update={"manifest": tmp_path})
    with pytest.raises(ExportRejected, match="its manifest lies elsewhere"):
        export(config, tmp_path / "other", elsewhere, data, adapter)


def test_experts_beside_a_base_need_a_card(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    adapter = _trained(moe_base, tmp_path / "trained")
    with pytest.raises(ExportRejected, match="no adapter on a mixture of experts on a CPU"):
        export(configure(*ALONE, "export.scheme=bf16"), tmp_path, moe_base, data, adapter)
    assert not (tmp_path / "adapter").exists()
