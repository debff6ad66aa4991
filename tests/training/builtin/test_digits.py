"""The built-in data set: real scans, stratified, with replayed and guarding rows of older tasks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.builtin.digits import GUARDS, TEST_SCANS, write_digits


def _written(folder: Path, replay: float, seed: int = 0) -> list[dict[str, Any]]:
    folder.mkdir()
    write_digits(folder, replay=replay, seed=seed)
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return _written(tmp_path_factory.mktemp("digits") / "a", replay=1.0)


def _count(rows: list[dict[str, Any]], split: str) -> Counter[str]:
    return Counter(row["slice"] for row in rows if row["split"] == split)


def test_all_scans_are_there_once_and_six_hundred_are_sealed(rows: list[dict[str, Any]]) -> None:
    scans = [row for row in rows if row["slice"] == "digits"]
    assert len(scans) == 1797
    assert _count(rows, "test") == {"digits": TEST_SCANS, **GUARDS}
    assert _count(rows, "eval") == {"digits": 150}


def test_the_test_split_has_every_digit_alike(rows: list[dict[str, Any]]) -> None:
    tested = [row for row in rows if row["split"] == "test" and row["slice"] == "digits"]
    counts = Counter(row["messages"][1]["content"][0]["text"] for row in tested)
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= 3


def test_replay_adds_a_row_of_older_tasks_for_each_new_one(rows: list[dict[str, Any]]) -> None:
    train = _count(rows, "train")
    assert train["printed"] + train["colours"] + train["shapes"] == pytest.approx(train["digits"], abs=2)


def test_without_replay_older_tasks_are_only_tested(tmp_path: Path) -> None:
    rows = _written(tmp_path / "b", replay=0)
    assert set(_count(rows, "train")) == {"digits"}
    assert _count(rows, "test") == {"digits": TEST_SCANS, **GUARDS}


def test_no_picture_is_in_two_splits(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    _written(folder, replay=1.0)
    seen: dict[str, str] = {}
    for row in rows:
        content = (folder / row["messages"][0]["content"][0]["image"]).read_bytes()
        assert seen.setdefault(hashlib.sha256(content).hexdigest(), row["split"]) == row["split"]
    assert len(seen) == len(rows)
