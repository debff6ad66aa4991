"""The finetune step on a card: paged optimizer states, loading processes, memory by phase, a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config
from tests.training.parts import Configure
from training.finetune import finetune
from training.loop.journal import read_history

pytestmark = pytest.mark.gpu

OVERRIDES = ("train.checkpoint_every=5", "train.eval_every=5", "train.learning_rate=0.01")
CARD = {"name": "card", "device": "cuda", "capability": [9, 0], "memory_gib": 48}
TRAIN = {"optimizer": "paged_adamw_8bit", "precision": "bf16", "activations": "recompute"}


@pytest.fixture
def on_a_card(configure: Configure) -> Config:
    """The embedded default as a real model would be trained."""
    sections = configure(*OVERRIDES).model_dump(mode="json")
    return Config.model_validate({**sections, "hardware": CARD, "train": {**sections["train"], **TRAIN}})


def _losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_history(folder / "history.jsonl") if "loss" in event]


def test_a_run_on_a_card_learns_and_knows_its_memory(
    on_a_card: Config, moe_base: BaseSnapshot, data: Dataset, tmp_path: Path
) -> None:
    adapter = finetune(on_a_card, tmp_path, moe_base, data)
    losses = _losses(tmp_path)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert set(adapter.memory) == {"load", "train", "evaluate", "save"}
    assert all(0 < peak.allocated_gib <= peak.reserved_gib for peak in adapter.memory.values())


def test_a_run_on_a_card_goes_on_from_its_checkpoint(
    on_a_card: Config, moe_base: BaseSnapshot, data: Dataset, tmp_path: Path
) -> None:
    finetune(on_a_card, tmp_path, moe_base, data)
    whole = _losses(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-10")
    finetune(on_a_card, tmp_path, moe_base, data)
    assert _losses(tmp_path) == pytest.approx(whole, rel=0.02)
