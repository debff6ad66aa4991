"""Several processes, started as for several GPUs, here on a CPU with gloo: the same losses as one, and they resume."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.launch import run_step
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE
from tests.training.parts import Configure
from training.finetune import finetune
from training.loop.journal import MEASURED, Event, read_history

OVERRIDES = ("train.steps=4", "train.checkpoint_every=2", "train.eval_every=4", "train.learning_rate=0.01")


def _curve(folder: Path) -> list[Event]:
    return [
        {key: value for key, value in event.items() if key not in MEASURED}
        for event in read_history(folder / "history.jsonl")
    ]


def _started(root: Path, config: Config, base: BaseSnapshot, data: Dataset) -> Run:
    two = config.hardware.model_copy(update={"gpus": 2})
    run = Run.create(root, config.model_copy(update={"hardware": two}))
    for step, artifact in ((DOWNLOAD, base), (PREPARE, data)):
        run.folder(step).mkdir()
        run.write(step, artifact, seconds=1, peak_gib=1)
    return run


def test_two_processes_give_the_losses_of_one_and_resume(
    moe_base: BaseSnapshot,
    data: Dataset,
    configure: Configure,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLMOPS_ML_PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = configure(*OVERRIDES)
    alone = finetune(config, tmp_path, moe_base, data)
    run = _started(tmp_path / "run", config, moe_base, data)
    assert run_step(FINETUNE, run.root, Settings()) == 0
    curve = _curve(run.folder(FINETUNE))
    for key in ("loss", "grad_norm", "eval_loss", "tokens", "learning_rate"):
        expected = [event[key] for event in _curve(tmp_path) if key in event]
        assert [event[key] for event in curve if key in event] == pytest.approx(expected, abs=1e-4)
    assert run.read(FINETUNE).eval_loss == pytest.approx(alone.eval_loss, abs=1e-4)

    newest = run.folder(FINETUNE) / "checkpoints" / "checkpoint-4"
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    digest = run.read(FINETUNE).digest
    run.forget(FINETUNE)
    assert run_step(FINETUNE, run.root, Settings()) == 0
    printed = capfd.readouterr().err
    assert "checkpoint-4 is skipped" in printed
    assert "resuming from checkpoint-2" in printed
    assert _curve(run.folder(FINETUNE)) == curve
    assert run.read(FINETUNE).digest == digest
