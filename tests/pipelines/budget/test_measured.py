"""Predicted and measured memory stand side by side in MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot
from pipelines.budget.measured import predictions
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, EVALUATE, FINETUNE, GATE
from pipelines.tracking import client, publish
from tests.pipelines.budget.checkpoint import write_checkpoint
from tests.pipelines.finished_run import evaluated_run


def run_with_base(settings: Settings, folder: Path, name: str) -> Run:
    run = evaluated_run(settings, name, f"t-{name}")
    base = BaseSnapshot(path=write_checkpoint(folder), source="x", revision="r", digest="d", architecture="a")
    run.folder(DOWNLOAD).mkdir()
    run.write(DOWNLOAD, base, seconds=1, peak_gib=0.1)
    return run


def test_a_finished_step_has_its_prediction_beside_it(settings: Settings, tmp_path: Path) -> None:
    run = run_with_base(settings, tmp_path / "base", "predicted")
    trained = predictions(run, FINETUNE)
    assert trained["finetune.predicted_peak_gib"] == pytest.approx(0.85, rel=0.15)
    assert trained["finetune.measured_over_predicted"] == pytest.approx(1.2 / trained["finetune.predicted_peak_gib"])
    served = predictions(run, EVALUATE)
    assert served["evaluate.measured_over_predicted"] == pytest.approx(1.5 / served["evaluate.predicted_peak_gib"])
    assert predictions(run, GATE) == {}


def test_no_prediction_without_the_base(settings: Settings, tmp_path: Path) -> None:
    run = run_with_base(settings, tmp_path / "base", "gone")
    shutil.rmtree(tmp_path / "base")
    assert predictions(run, FINETUNE) == {}
    assert predictions(evaluated_run(settings, "never", "t-never"), FINETUNE) == {}


def test_a_base_that_cannot_be_planned_keeps_nothing_from_being_published(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with_base(settings, tmp_path / "base", "odd")
    (tmp_path / "base" / "config.json").write_text('{"text_config": {}}')
    assert predictions(run, FINETUNE) == {}
    assert "finetune has no prediction" in caplog.text


def test_both_are_published(tracked: Settings, tmp_path: Path) -> None:
    run = run_with_base(tracked, tmp_path / "base", "published")
    metrics = client(tracked).get_run(publish(run, tracked)).data.metrics
    assert metrics["finetune.peak_gib"] == 1.2
    assert metrics["finetune.predicted_peak_gib"] > 0.7
    assert metrics["evaluate.measured_over_predicted"] > 0.5
