"""The finetune step: it learns, it resumes after SIGKILL to the same bits, and it stops where it should."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.errors import MachineUnfit, OutOfMemory, RunConflict, TrainingFailed
from pipelines.system.manifest import ManifestMismatch, verify_manifest
from tests.training.parts import Configure, run_until_killed
from training import finetune as module
from training.adapter import WEIGHTS
from training.finetune import finetune
from training.loop.journal import MEASURED, read_history
from training.loss import AnswerLoss

OVERRIDES = ("train.checkpoint_every=3", "train.eval_every=4", "train.learning_rate=0.01")


def _history(folder: Path) -> list[dict[str, float]]:
    return read_history(folder / "history.jsonl")


def _curve(folder: Path) -> list[dict[str, float]]:
    return [{key: event[key] for key in event if key not in MEASURED} for event in _history(folder)]


@pytest.fixture(scope="module")
def whole(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Adapter]:
    """An uninterrupted run of ten steps."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finetune(configure(*OVERRIDES), folder, moe_base, data)


def test_the_history_holds_every_step_and_evaluation_once(whole: tuple[Path, Adapter]) -> None:
    events = _history(whole[0])
    assert [event["step"] for event in events if "loss" in event] == list(range(1, 11))
    assert [event["step"] for event in events if "eval_loss" in event] == [4, 8, 10]
    steps = [event for event in events if "loss" in event]
    facts = {"step", "loss", "learning_rate", "grad_norm", "tokens", "padding", "tokens_per_second", "peak_gib"}
    assert all(set(event) == facts for event in steps)
    assert all(set(event) == {"step", "eval_loss"} for event in events if event not in steps)
    assert (whole[0] / "loss.png").stat().st_size > 1000


def test_the_loss_falls_and_the_artifact_tells_it(whole: tuple[Path, Adapter]) -> None:
    events = _history(whole[0])
    losses = [event["loss"] for event in events if "loss" in event]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert whole[1].loss == losses[-1]
    assert whole[1].eval_loss == min(event["eval_loss"] for event in events if "eval_loss" in event)
    assert (whole[1].steps, whole[1].stopped_early, whole[1].tokens_per_batch) == (10, False, 8192)
    assert whole[1].trainable_parameters > 10_000
    assert whole[1].tokens_per_second > 0
    assert 0 <= whole[1].padding_share < 0.5
    assert set(whole[1].memory) == {"load", "train", "evaluate", "save"}
    assert whole[1].peak_gib == max(peak.allocated_gib for peak in whole[1].memory.values()) > 0
    verify_manifest(whole[1].path, whole[1].digest)


def test_old_checkpoints_are_deleted_and_hold_no_base(whole: tuple[Path, Adapter], moe_base: BaseSnapshot) -> None:
    checkpoints = sorted((whole[0] / "checkpoints").iterdir())
    # The two newest, and what was the best one when the older of them was written.
    assert [path.name for path in checkpoints] == ["checkpoint-10", "checkpoint-8", "checkpoint-9"]
    base_bytes = (moe_base.path / "model.safetensors").stat().st_size
    assert (checkpoints[0] / "adapter_model.safetensors").stat().st_size < base_bytes


@pytest.mark.parametrize(
    ("where", "at"), [("training.loop.journal.Journal.on_log", 11), ("training.loop.checkpoints.seal", 2)]
)
def test_a_killed_run_resumes_to_the_same_bits(
    where: str,
    at: int,
    whole: tuple[Path, Adapter],
    moe_base: BaseSnapshot,
    data: Dataset,
    configure: Configure,
    tmp_path: Path,
) -> None:
    run_until_killed(where, at, "finetune", configure(*OVERRIDES), tmp_path, moe_base, data)
    assert not (tmp_path / "adapter").exists()
    assert list((tmp_path / "checkpoints").iterdir())
    resumed = finetune(configure(*OVERRIDES), tmp_path, moe_base, data)
    assert _curve(tmp_path) == _curve(whole[0])
    assert resumed.digest == whole[1].digest


def test_a_finished_run_is_not_trained_again(
    whole: tuple[Path, Adapter], moe_base: BaseSnapshot, data: Dataset, configure: Configure
) -> None:
    assert finetune(configure(*OVERRIDES), whole[0], moe_base, data).digest == whole[1].digest


def test_checkpoints_of_another_config_are_refused(
    whole: tuple[Path, Adapter], moe_base: BaseSnapshot, data: Dataset, configure: Configure
) -> None:
    with pytest.raises(RunConflict, match="another config"):
        finetune(configure(*OVERRIDES, "lora.rank=2"), whole[0], moe_base, data)
    other = data.model_copy(update={"digest": "0"})
    with pytest.raises(ManifestMismatch):
        finetune(configure(*OVERRIDES), whole[0], moe_base, other)
    with pytest.raises(RunConflict, match="base"):
        finetune(configure(*OVERRIDES), whole[0], moe_base.model_copy(update={"digest": "0"}), data)


def test_devices_that_are_not_there_are_missed_at_once(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    config = configure(*OVERRIDES)
    card = config.hardware.model_copy(update={"device": "cuda", "gpus": torch.cuda.device_count() + 1})
    with pytest.raises(MachineUnfit, match=r"hardware\.gpus is \d and CUDA shows \d"):
        finetune(config.model_copy(update={"hardware": card}), tmp_path, moe_base, data)


def test_a_device_that_is_too_small_is_said_before_anything_is_loaded(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr(module, "load_quantized", lambda path, *_: loaded.append(path))
    config = configure(*OVERRIDES)
    small = config.hardware.model_copy(update={"memory_gib": 0.5})
    with pytest.raises(MachineUnfit, match=r"training needs about 0\.\d GiB, and cpu allows 0\.5 GiB"):
        finetune(config.model_copy(update={"hardware": small}), tmp_path, moe_base, data)
    assert not loaded
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AnswerLoss.forward, iter(range(100))

    def broken(self: AnswerLoss, **inputs: Any) -> torch.Tensor:
        return original(self, **inputs) * (float("nan") if next(calls) == 3 else 1)

    monkeypatch.setattr(AnswerLoss, "forward", broken)
    with pytest.raises(TrainingFailed, match="nan at step 4"):
        finetune(configure(*OVERRIDES), tmp_path, moe_base, data)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    "overrides", [("train.activations=recompute",), ("train.activations=offload",), ("train.precision=bf16",)]
)
def test_other_modes_give_nearly_the_same(
    overrides: tuple[str, ...],
    whole: tuple[Path, Adapter],
    moe_base: BaseSnapshot,
    data: Dataset,
    configure: Configure,
    tmp_path: Path,
) -> None:
    adapter = finetune(configure(*OVERRIDES, *overrides), tmp_path, moe_base, data)
    assert adapter.loss == pytest.approx(whole[1].loss, rel=0.05)


def test_a_dense_model_is_trained_by_the_same_code(
    dense_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    adapter = finetune(configure(*OVERRIDES), tmp_path, dense_base, data)
    evaluations = [event["eval_loss"] for event in _history(tmp_path) if "eval_loss" in event]
    assert adapter.eval_loss == evaluations[-1] < evaluations[0]


def test_micro_batches_change_the_memory_and_not_the_result(
    whole: tuple[Path, Adapter], moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    small = configure(*OVERRIDES, "train.tokens_per_batch=48", "data.max_tokens=48")
    adapter = finetune(small, tmp_path, moe_base, data)
    for key in ("loss", "grad_norm", "eval_loss"):
        expected = [event[key] for event in _history(whole[0]) if key in event]
        assert [event[key] for event in _history(tmp_path) if key in event] == pytest.approx(expected, rel=1e-4)
    assert adapter.padding_share < whole[1].padding_share


@pytest.fixture
def worse_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation is worse than the one before it."""
    original, calls = AnswerLoss.summed, itertools.count(1)

    def summed(self: AnswerLoss, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, int]:
        total, count = original(self, labels, **inputs)
        return (total, count) if torch.is_grad_enabled() else (total * 0 + next(calls) * count, count)

    monkeypatch.setattr(AnswerLoss, "summed", summed)


@pytest.mark.usefixtures("worse_from_here")
def test_the_best_adapter_is_handed_on_and_survives_the_pruning(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    frequent = configure(*OVERRIDES, "train.eval_every=2", "train.checkpoint_every=1", "train.keep_checkpoints=1")
    adapter = finetune(frequent, tmp_path, moe_base, data)
    assert (adapter.best_step, adapter.steps, adapter.stopped_early) == (2, 10, False)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert _same_weights(adapter.path, tmp_path / "checkpoints" / "checkpoint-2")
    assert adapter.eval_loss == 1


@pytest.mark.usefixtures("worse_from_here")
def test_the_last_adapter_is_handed_on_if_the_config_says_so(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    adapter = finetune(configure(*OVERRIDES, "train.keep_best=false"), tmp_path, moe_base, data)
    assert adapter.best_step == 4
    assert adapter.eval_loss == 3
    assert _same_weights(adapter.path, tmp_path / "checkpoints" / "checkpoint-10")


@pytest.mark.usefixtures("worse_from_here")
def test_a_run_that_does_not_improve_stops_and_stays_stopped(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    patient = configure(*OVERRIDES, "train.eval_every=2", "train.patience=2")
    adapter = finetune(patient, tmp_path, moe_base, data)
    assert (adapter.best_step, adapter.steps, adapter.stopped_early) == (2, 6, True)
    curve = _curve(tmp_path)
    again = finetune(patient, tmp_path, moe_base, data)
    assert (again.digest, again.steps, again.stopped_early) == (adapter.digest, 6, True)
    assert _curve(tmp_path) == curve


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device holds 40 tokens, from the sixth forward pass on."""
    original, calls = AnswerLoss.summed, itertools.count(1)

    def summed(self: AnswerLoss, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, int]:
        if torch.is_grad_enabled() and next(calls) > 5 and inputs["input_ids"].numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, labels, **inputs)

    monkeypatch.setattr(AnswerLoss, "summed", summed)


@pytest.mark.usefixtures("small_device")
def test_out_of_memory_is_named_with_what_to_lower(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    message = (
        r"train, after step 5\): \d rows of up to \d\d tokens, \d+ with padding.*lower train.tokens_per_batch \(8192\)"
    )
    with pytest.raises(OutOfMemory, match=message):
        finetune(configure(*OVERRIDES), tmp_path, moe_base, data)


@pytest.mark.usefixtures("small_device")
def test_out_of_memory_halves_the_budget_once_and_says_so(
    whole: tuple[Path, Adapter],
    moe_base: BaseSnapshot,
    data: Dataset,
    configure: Configure,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = ("data.max_tokens=65", "train.tokens_per_batch=65", "train.retry_out_of_memory=true")
    config = configure(*OVERRIDES, *limits)
    adapter = finetune(config, tmp_path, moe_base, data)
    assert adapter.tokens_per_batch == 32
    assert finetune(config, tmp_path, moe_base, data).tokens_per_batch == 32  # from its last checkpoint
    assert "after step 2" in caplog.text  # in its second micro-batch: the first one's gradients must go
    assert "half of train.tokens_per_batch" in caplog.text
    assert {"step": 2, "tokens_per_batch": 32} in _history(tmp_path)
    for key in ("loss", "grad_norm"):
        expected = [event[key] for event in _history(whole[0]) if key in event]
        assert [event[key] for event in _history(tmp_path) if key in event] == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("small_device")
def test_out_of_memory_twice_ends_the_run(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemory, match=r"tokens_per_batch \(4096\)"):
        finetune(configure(*OVERRIDES, "train.retry_out_of_memory=true"), tmp_path, moe_base, data)


def _same_weights(a: Path, b: Path) -> bool:
    return (a / WEIGHTS).read_bytes() == (b / WEIGHTS).read_bytes()
