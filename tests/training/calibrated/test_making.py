"""A run's model in a calibrated scheme, by the command: merged first, which a failed calibration leaves to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.artifact import Artifact
from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.budget.base import read_base
from pipelines.budget.exporting import host_need
from pipelines.errors import BAD_INPUT, DONE, FAILED
from pipelines.run import Run
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE
from pipelines.system.manifest import NAME, read_manifest, verify_manifest
from tests.training.parts import Configure, adapted_model, store_adapter
from training.calibrated.compress import memory_bytes
from training.standalone import main
from training.weights.shards import read_headers


@pytest.fixture
def run(dense_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path) -> Run:
    """One that has an adapter."""
    run = Run.create(tmp_path / "run", configure("export.calibration_rows=4", "export.parity.prompts=2"))
    adapter = store_adapter(adapted_model(dense_base)[1], dense_base, tmp_path / "adapter")
    artifacts: dict[str, Artifact] = {DOWNLOAD.name: dense_base, PREPARE.name: data, FINETUNE.name: adapter}
    for name, artifact in artifacts.items():
        (run.root / name).mkdir()
        record = {"inputs": "", "artifact": artifact.model_dump(mode="json"), "seconds": 1, "peak_gib": 1}
        (run.root / name / "output.json").write_text(json.dumps(record))
    return run


@pytest.mark.usefixtures("llm_compressor")
def test_a_run_is_exported_calibrated_on_its_own_rows(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.root), "--scheme=gptq_int8"]) == DONE
    exports = run.root / "exports"
    verify_manifest(exports / "gptq_int8")
    assert read_manifest(exports / "gptq_int8")["scheme"] == "gptq_int8"
    assert [entry.name for entry in exports.iterdir()] == ["gptq_int8"]
    assert "21 compared with the merged model" in capsys.readouterr().out


def test_a_failed_calibration_leaves_the_merged_model_to_the_next(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("VLMOPS_QUANTIZE_PYTHON", str(program))
    merged, made = run.root / "exports" / ".gptq_int8.merged" / NAME, []
    for _ in range(2):
        assert main([str(run.root), "--scheme=gptq_int8"]) == FAILED
        made.append(merged.stat().st_mtime_ns)
    assert made[0] == made[1]
    assert not (run.root / "exports" / "gptq_int8").exists()


def test_without_its_environment_nothing_is_begun(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLMOPS_QUANTIZE_PYTHON", str(run.root / "nothing"))
    assert main([str(run.root), "--scheme=gptq_int8"]) == BAD_INPUT
    assert "needs `make quantize-env`" in capsys.readouterr().err
    assert not (run.root / "exports").exists()


def test_the_plan_says_the_memory_that_a_calibration_insists_on(
    any_base: BaseSnapshot, merged: Path, configure: Configure
) -> None:
    planned = host_need(configure("export.scheme=gptq_int8"), read_base(any_base.path)).memory_bytes
    assert planned == pytest.approx(memory_bytes(read_headers(merged)), rel=0.01)
