"""Checkpoints: whole or skipped by name, of this run or refused, pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import RunConflict
from training.loop.checkpoints import newest_whole, prune, seal, steps


def _write(folder: Path, step: int, recipe: str = "r") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("x" * 10)
    seal(checkpoint, recipe)
    return checkpoint


def test_the_newest_by_number_is_taken(tmp_path: Path) -> None:
    _write(tmp_path, 9)
    ten = _write(tmp_path, 10)
    assert newest_whole(tmp_path, "r") == ten


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nothing", "r") is None


@pytest.mark.parametrize("damage", ["truncated", "unsealed"])
def test_a_damaged_one_is_skipped_by_name(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, damaged = _write(tmp_path, 9), _write(tmp_path, 10)
    if damage == "truncated":
        (damaged / "weights").write_text("x" * 9)
    else:
        (damaged / "manifest.json").unlink()
    assert newest_whole(tmp_path, "r") == whole
    assert "checkpoint-10 is skipped" in caplog.text


def test_one_of_another_run_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, 1, recipe="other")
    with pytest.raises(RunConflict, match=r"another config, data set or base.*delete"):
        newest_whole(tmp_path, "r")


def test_what_is_to_be_kept_is_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        _write(tmp_path, step)
    assert steps(tmp_path) == [11, 10, 9]
    prune(tmp_path, keep={9, 11})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-9"]
