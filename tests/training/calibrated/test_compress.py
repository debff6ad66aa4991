"""The calibrated schemes by the real llm-compressor, from our merged model to a folder that passes for our own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.errors import ExportRejected, MachineUnfit
from pipelines.schemes import SCHEMES, Scheme, scheme_of
from pipelines.system.durable import partial_of
from pipelines.system.manifest import read_manifest, verify_manifest
from tests.training.calibrated.conftest import Merge, tensor_files
from tests.training.parts import Configure
from training.calibrated import compress
from training.calibrated.compress import calibrate, memory_bytes
from training.int8 import is_quantized, quantize
from training.weights.checkpoint import open_checkpoint
from training.weights.released import Release
from training.weights.shards import Stored, read_headers

CALIBRATED = [scheme_of(scheme.name, 32) for scheme in SCHEMES.values() if scheme.calibrated]


def test_there_are_calibrated_schemes() -> None:
    assert {scheme.name for scheme in CALIBRATED} == {"gptq_int8", "gptq_int4", "smoothquant_int8"}


@pytest.mark.usefixtures("llm_compressor")
@pytest.mark.parametrize("scheme", CALIBRATED, ids=lambda scheme: scheme.name)
def test_a_calibrated_model_is_released_like_one_of_our_own(
    scheme: Scheme, any_base: BaseSnapshot, merged: Path, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    config, folder = configure("export.calibration_rows=12", "export.max_shard_gb=0.001"), tmp_path / "model"
    calibration = calibrate(config, scheme, merged, data, partial_of(folder))
    assert len(calibration.errors) == (66 if "Moe" in any_base.architecture else 21)
    assert (calibration.rows, calibration.fallbacks) == (12, 0)
    assert max(calibration.errors) < (0.02 if scheme.bits == 8 else 0.2)
    release = Release(open_checkpoint(merged, any_base.digest), scheme, config.images, {"base": any_base.digest})
    release.complete(partial_of(folder))
    verify_manifest(folder, release.seal(folder, calibration.files))
    assert read_manifest(folder)["scheme"] == scheme.name
    assert tensor_files(folder) == {written.file for written in calibration.files}
    assert len(calibration.files) > 1
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert {file.name for file in folder.iterdir()} - {written.file for written in calibration.files} == {
        file.name for file in merged.iterdir() if file.suffix != ".safetensors"
    }
    assert [left.name for left in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("llm_compressor")
def test_the_rows_decide_more_than_rounding_would(
    dense_base: BaseSnapshot, merge: Merge, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    merged = merge(dense_base)
    calibrate(configure("export.calibration_rows=12"), SCHEMES["gptq_int8"], merged, data, tmp_path / "model")
    written = {tensor.name: tensor for tensor in read_headers(tmp_path / "model")}
    for tensor in read_headers(merged):
        if is_quantized(tensor.name, tensor.shape):
            rounded = quantize(tensor.read())
            assert torch.equal(written[f"{tensor.name}_scale"].read(), rounded.scale)
            assert (written[tensor.name].read() != rounded.steps).float().mean() > 0.05


def test_a_missing_environment_is_said_with_its_way_out(
    merged: Path, data: Dataset, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMOPS_QUANTIZE_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(MachineUnfit, match=re.escape("export.scheme gptq_int4 needs `make quantize-env`")):
        calibrate(configure(), scheme_of("gptq_int4", 32), merged, data, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def double(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of llm-compressor's interpreter: says why it cannot, and ends."""
    program = tmp_path_factory.mktemp("double") / "python"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("VLMOPS_QUANTIZE_PYTHON", str(program))
    return program


@pytest.mark.usefixtures("double")
def test_what_llm_compressor_said_last_is_in_the_error(
    merged: Path, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ExportRejected, match=r"exit code 3.*\n.*out of luck"):
        calibrate(configure(), SCHEMES["gptq_int8"], merged, data, tmp_path / "model")
    plan = json.loads((tmp_path / ".model.calibration" / "plan.json").read_text())
    assert plan["method"] == "gptq"
    assert plan["model"] == str(merged)


@pytest.mark.usefixtures("double")
def test_memory_for_the_whole_model_is_asked_for_first(
    merged: Path, data: Dataset, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "MEMORY_BYTES", 2**60)
    with pytest.raises(MachineUnfit, match=r"gptq_int8, which holds the whole model, needs .* GiB of host memory"):
        calibrate(configure(), SCHEMES["gptq_int8"], merged, data, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_memory_of_a_model_is_more_than_its_weights(tmp_path: Path) -> None:
    """At the widths of a 30B mixture of experts, one layer: 128 experts' statistics are more than its weights."""
    shapes = {f"{part}_proj": (768, 2048) for part in ("gate", "up")} | {"down_proj": (2048, 768)}
    stored = [
        Stored(f"model.language_model.layers.0.mlp.experts.{expert}.{name}.weight", torch.bfloat16, shape, tmp_path, 0)
        for expert in range(128)
        for name, shape in shapes.items()
    ]
    assert 1.2e9 + 4.6e9 < memory_bytes(stored) < 12e9


@pytest.mark.usefixtures("double")
def test_groups_that_do_not_fit_are_said_before_anything_is_started(
    moe_base: BaseSnapshot, merge: Merge, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    merged = merge(moe_base)
    with pytest.raises(ExportRejected, match="96 inputs do not divide into groups of 128"):
        calibrate(configure(), SCHEMES["gptq_int4"], merged, data, tmp_path / "model")
    assert not list(tmp_path.iterdir())
