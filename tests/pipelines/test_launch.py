"""How steps are started: one process, or several for fine-tuning on several devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.launch import command, step_environment
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, EXPORT, FINETUNE, PREPARE, PROMOTE
from tests.pipelines.finished_run import adapter, config

BASE = BaseSnapshot(
    path=Path("base"), source="builtin://x", revision="c" * 40, digest="b" * 64, architecture="Qwen3VLMoe"
)
DATA = Dataset(
    path=Path("data"), digest="d" * 64, test_digest="t" * 64, rows={}, slices={}, rejects=(), tokens=(), visual_share=0
)


def _run(folder: Path, **hardware: object) -> Run:
    given = config("digits")
    run = Run.create(folder, given.model_copy(update={"hardware": given.hardware.model_copy(update=hardware)}))
    for step, artifact in ((DOWNLOAD, BASE), (PREPARE, DATA)):
        run.folder(step).mkdir()
        run.write(step, artifact, seconds=1, peak_gib=1)
    return run


def test_on_one_device_a_step_is_one_process(tmp_path: Path, settings: Settings) -> None:
    run = _run(tmp_path / "run")
    start = [settings.ml_python, "-m", "pipelines.execute", str(run.root), "finetune"]
    assert command(FINETUNE, run.root, settings) == start
    assert command(FINETUNE, run.root, settings, again=True) == [*start, "--again"]


def test_on_several_devices_fine_tuning_alone_is_as_many_processes(tmp_path: Path, settings: Settings) -> None:
    run = _run(tmp_path / "run", gpus=2)
    started = command(FINETUNE, run.root, settings)
    assert started[:3] == [settings.ml_python, "-m", "accelerate.commands.launch"]
    assert "--num_processes=2" in started
    # Each of them must compute, whatever it finds: none may wait for one that reuses a result.
    assert started[-5:] == ["-m", "pipelines.execute", str(run.root), "finetune", "--again"]
    assert "accelerate.commands.launch" not in command(EXPORT, run.root, settings)


def test_a_finished_result_is_reused_by_one_process(tmp_path: Path, settings: Settings) -> None:
    run = _run(tmp_path / "run", gpus=2)
    run.folder(FINETUNE).mkdir()
    run.write(FINETUNE, adapter(run), seconds=1, peak_gib=1)
    assert "accelerate.commands.launch" not in command(FINETUNE, run.root, settings)
    assert "accelerate.commands.launch" in command(FINETUNE, run.root, settings, again=True)


def test_segments_that_can_grow_are_for_fine_tuning_on_cuda(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    cuda, cpu = _run(tmp_path / "cuda", device="cuda", capability=(8, 9)), _run(tmp_path / "cpu")
    assert step_environment(FINETUNE, cuda.root, settings)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_ALLOC_CONF" not in step_environment(EXPORT, cuda.root, settings)
    assert "PYTORCH_ALLOC_CONF" not in step_environment(FINETUNE, cpu.root, settings)


def test_what_the_machine_says_of_the_allocator_wins(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    run = _run(tmp_path / "run", device="cuda", capability=(8, 9))
    assert step_environment(FINETUNE, run.root, settings)["PYTORCH_ALLOC_CONF"] == "backend:cudaMallocAsync"


def test_who_promotes_does_not_wait_minutes_for_mlflow_unless_told(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.delenv(retries, raising=False)
    run = _run(tmp_path / "run")
    assert step_environment(PROMOTE, run.root, settings)[retries] == "2"
    assert retries not in step_environment(EXPORT, run.root, settings)
    monkeypatch.setenv(retries, "9")
    assert step_environment(PROMOTE, run.root, settings)[retries] == "9"
