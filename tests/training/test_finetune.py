"""The finetune step: it learns, it resumes after SIGKILL to the same bits, and it stops where it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.errors import RunConflict, TrainingFailed
from pipelines.system.manifest import ManifestMismatch, verify_manifest
from tests.training.parts import Configure, run_until_killed
from training import trainer
from training.finetune import finetune

OVERRIDES = ("train.checkpoint_every=3", "train.eval_every=4", "train.learning_rate=0.01")


def _history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


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
    assert {tuple(event) for event in events} == {("step", "loss", "learning_rate"), ("step", "eval_loss")}
    assert (whole[0] / "loss.png").stat().st_size > 1000


def test_the_loss_falls_and_the_artifact_tells_it(whole: tuple[Path, Adapter]) -> None:
    events = _history(whole[0])
    losses = [event["loss"] for event in events if "loss" in event]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert whole[1].loss == losses[-1]
    assert whole[1].eval_loss == events[-1]["eval_loss"]
    assert whole[1].trainable_parameters > 10_000
    assert whole[1].tokens_per_second > 0
    verify_manifest(whole[1].path, whole[1].digest)


def test_old_checkpoints_are_deleted_and_hold_no_base(whole: tuple[Path, Adapter], moe_base: BaseSnapshot) -> None:
    checkpoints = sorted((whole[0] / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["checkpoint-10", "checkpoint-9"]
    base_bytes = (moe_base.path / "model.safetensors").stat().st_size
    assert (checkpoints[0] / "adapter_model.safetensors").stat().st_size < base_bytes


@pytest.mark.parametrize(("where", "at"), [("training.trainer.Journal.on_log", 11), ("training.checkpoints.seal", 2)])
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
    assert _history(tmp_path) == _history(whole[0])
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


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.AdapterTrainer.compute_loss

    def broken(self: trainer.AdapterTrainer, *arguments: object, **options: object) -> object:
        loss = original(self, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(trainer.AdapterTrainer, "compute_loss", broken)
    with pytest.raises(TrainingFailed, match="nan at step 4"):
        finetune(configure(*OVERRIDES), tmp_path, moe_base, data)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("overrides", [("train.gradient_checkpointing=true",), ("train.precision=bf16",)])
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
