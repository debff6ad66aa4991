"""The prepare step: what is kept, what is rejected and why, who is tested, and what a kill leaves behind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.errors import DataRejected
from pipelines.system.manifest import verify_manifest
from tests.training.parts import Configure, run_until_killed, write_rows, write_source
from training.data import prepare


def _lines(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data.path / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return write_source(tmp_path / "source", {"printed": 20})


def _prepare(configure: Configure, base: BaseSnapshot, folder: Path, *overrides: str) -> Dataset:
    source = folder / "source"
    return prepare(configure(f"data.source=file://{source}", *overrides), folder, base)


def test_every_row_is_in_one_split_and_its_images_are_beside_it(data: Dataset) -> None:
    rows = {split: _lines(data, split) for split in ("train", "eval", "test")}
    assert {split: len(lines) for split, lines in rows.items()} == data.rows
    assert data.rows == {"train": 24, "eval": 4, "test": 12}
    assert len({row["id"] for lines in rows.values() for row in lines}) == 40
    paths = {
        part["image"] for ls in rows.values() for r in ls for part in r["messages"][0]["content"] if "image" in part
    }
    assert paths == {f"images/{file.name}" for file in (data.path / "images").iterdir()}


def test_the_artifact_counts_slices_tokens_and_visual_share(data: Dataset) -> None:
    assert sum(sum(slices.values()) for slices in data.slices.values()) == 40
    assert data.slices["test"] == {"colours": 3, "printed": 6, "shapes": 3}
    assert sum(data.tokens) == 40
    assert data.tokens[1] == 40  # 16 to 31 tokens
    assert 0.1 < data.visual_share < 0.2
    assert (data.path.parent / "tokens.png").stat().st_size > 1000


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    data: Dataset, source: Path, moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    again = prepare(configure(f"data.source=file://{source}"), tmp_path, moe_base)
    assert (again.digest, again.test_digest) == (data.digest, data.test_digest)
    verify_manifest(again.path, data.digest)
    other = prepare(configure(f"data.source=file://{source}", "data.seed=1"), tmp_path, moe_base)
    assert other.test_digest != data.test_digest


def test_the_test_digest_is_that_of_the_test_split_alone(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    for i, row in enumerate(rows):
        row["split"] = ("train", "eval", "test")[i % 3]
    digests = []
    for change in (None, 0, 2):
        if change is not None:
            rows[change]["messages"][1]["content"] = "Another answer."
        write_rows(tmp_path / "source", rows)
        digests.append(_prepare(configure, moe_base, tmp_path).test_digest)
    assert digests[0] == digests[1] != digests[2]


def test_rejects_are_set_aside_with_their_reasons(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "images" / "0.png").unlink()
    rows[1]["messages"][1]["content"] = ""
    rows[2]["id"] = rows[3]["id"]
    rows[4]["messages"][0]["content"][1]["text"] = "why " * 100
    write_rows(source, rows)
    data = _prepare(configure, moe_base, tmp_path, "data.max_reject_share=0.3")
    reasons = {reject.line: reject.reason for reject in data.rejects}
    assert reasons == {1: "missing image", 2: "empty answer", 4: "duplicate id", 5: "too long"}
    assert sum(data.rows.values()) == 16
    kept = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert Counter(reject["reason"] for reject in kept) == Counter(reasons.values())
    assert len(list((data.path / "images").iterdir())) == 16  # of rejected rows nothing is left


def test_too_many_rejects_fail_with_counts_and_examples(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    for i in (0, 1):
        (tmp_path / "source" / "images" / f"{i}.png").unlink()
    rows[2]["messages"][1]["content"] = ""
    write_rows(tmp_path / "source", rows)
    with pytest.raises(DataRejected) as rejected:
        _prepare(configure, moe_base, tmp_path, "data.max_reject_share=0.1")
    assert "3 of 20 rows" in str(rejected.value)
    assert "2 x missing image, first in line 1" in str(rejected.value)
    assert not (tmp_path / "data").exists()
    assert (tmp_path / "rejects.jsonl").is_file()


def test_a_training_row_that_the_test_asks_too_is_rejected_and_the_test_stays(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    for i, row in enumerate(rows):
        row["split"] = ("train", "eval", "test")[i % 3]
    leak = {**rows[2], "id": "leak", "split": "train"}
    write_rows(tmp_path / "source", [*rows, leak])
    data = _prepare(configure, moe_base, tmp_path, "data.max_reject_share=0.1")
    assert [(reject.line, reject.reason) for reject in data.rejects] == [(21, "test leakage")]
    assert data.rows["test"] == 6


def test_an_empty_split_is_refused(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    write_rows(tmp_path / "source", [{**row, "split": "train"} for row in rows])
    with pytest.raises(DataRejected, match="no rows in split eval, test"):
        _prepare(configure, moe_base, tmp_path)


@pytest.mark.parametrize("source", ["file:///no/such/folder", "builtin://letters"])
def test_an_unknown_source_is_refused(
    source: str, moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(DataRejected, match=r"no data.jsonl|no such"):
        prepare(configure(f"data.source={source}"), tmp_path, moe_base)


def test_a_killed_step_leaves_nothing_that_looks_whole_and_starts_over(
    data: Dataset, source: Path, moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    config = configure(f"data.source=file://{source}")
    run_until_killed("training.data.write_manifest", 1, "prepare", config, tmp_path, moe_base)
    assert not (tmp_path / "data").exists()
    assert prepare(config, tmp_path, moe_base).digest == data.digest
