"""The prepare step: what is kept, what is rejected and why, who is tested, and what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.errors import BadInput, DataRejected
from pipelines.system.manifest import verify_manifest
from pipelines.tracking import numbers
from tests.training.parts import Configure, requiring, run_until_killed, write_rows, write_source
from training.chat.dataset import EncodedRows
from training.chat.encoding import Encoder, load_processor
from training.chat.preflight import Report
from training.data import prepare

ALL = requiring("printed", "colours", "shapes")


def _lines(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data.path / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return write_source(tmp_path / "source", {"printed": 20})


def _prepare(configure: Configure, base: BaseSnapshot, folder: Path, *overrides: str) -> Dataset:
    source = folder / "source"
    return prepare(configure(f"data.source=file://{source}", requiring("printed"), *overrides), folder, base)


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


def test_the_report_is_written_and_its_key_figures_are_handed_on(data: Dataset) -> None:
    report = Report.model_validate_json((data.path.parent / "report.json").read_text())
    assert report.rows == data.slices
    assert data.preflight == report.key_figures()
    assert (data.preflight["images"], data.preflight["steps_per_epoch"]) == (40, 6)  # 24 rows, 4 a step
    assert dict(numbers(data.model_dump(mode="json"), "prepare"))["prepare.preflight.tokens_p99"] > 16


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    data: Dataset, source: Path, moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    again = prepare(configure(f"data.source=file://{source}", ALL), tmp_path, moe_base)
    assert (again.digest, again.test_digest) == (data.digest, data.test_digest)
    verify_manifest(again.path, data.digest)
    other = prepare(configure(f"data.source=file://{source}", ALL, "data.seed=1"), tmp_path, moe_base)
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
    assert {reject.file for reject in data.rejects} == {"data.jsonl"}
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
    assert "2 x missing image, first in data.jsonl line 1" in str(rejected.value)
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


def test_the_same_row_under_another_name_is_kept_once(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    shutil.copyfile(tmp_path / "source" / "images" / "3.png", tmp_path / "source" / "images" / "copy.png")
    copy = json.loads(json.dumps({**rows[3], "id": "copy"}).replace("images/3.png", "images/copy.png"))
    write_rows(tmp_path / "source", [*rows, copy])
    data = _prepare(configure, moe_base, tmp_path, "data.max_reject_share=0.1")
    assert [(reject.line, reject.reason) for reject in data.rejects] == [(21, "duplicate")]


def test_sharegpt_and_datasets_give_the_same_data_set_as_messages(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    first = _prepare(configure, moe_base, tmp_path)
    shared = [_sharegpt(row) for row in rows]
    (tmp_path / "source" / "data.jsonl").unlink()
    (tmp_path / "source" / "data.json").write_text(json.dumps(shared))
    assert _prepare(configure, moe_base, tmp_path, "data.format=sharegpt").digest == first.digest
    (tmp_path / "source" / "data.json").unlink()
    for row in shared:
        row["images"] = [{"bytes": (tmp_path / "source" / name).read_bytes(), "path": name} for name in row["images"]]
    pq.write_table(pa.Table.from_pylist(shared), tmp_path / "source" / "rows.parquet")
    shutil.rmtree(tmp_path / "source" / "images")
    assert _prepare(configure, moe_base, tmp_path).digest == first.digest


def _sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    (image, text), answer = row["messages"][0]["content"], row["messages"][1]["content"]
    turns = [{"from": "human", "value": f"<image>{text['text']}"}, {"from": "gpt", "value": answer}]
    return {"id": row["id"], "slice": row["slice"], "conversations": turns, "images": [image["image"]]}


def test_rows_of_text_alone_are_kept_beside_rows_with_images(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    for i, row in enumerate(rows[:5]):
        row["messages"][0]["content"] = f"Write {i} in words."
    write_rows(tmp_path / "source", rows)
    data = _prepare(configure, moe_base, tmp_path)
    assert data.preflight["text_only_rows"] == 5
    assert sum(data.rows.values()) == 20
    encoder = Encoder(load_processor(moe_base.path, 4096, 65536))
    lengths = set()
    for split in data.rows:
        for sample in EncodedRows(data.path, split, encoder, lambda row: row.input_ids.expand(3, -1)):
            lengths.add(0 if sample.row.image_grid_thw is None else len(sample.row.image_grid_thw))
    assert lengths == {0, 1}


def test_a_test_row_with_more_images_than_are_served_is_refused_before_training(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    content = rows[7]["messages"][0]["content"]
    rows[7] |= {
        "split": "test",
        "messages": [{"role": "user", "content": [content[0], *content]}, *rows[7]["messages"][1:]],
    }
    write_rows(tmp_path / "source", rows)
    with pytest.raises(DataRejected, match=r"1 test rows show more images .* such as 7; set it to 2"):
        _prepare(configure, moe_base, tmp_path)
    assert sum(_prepare(configure, moe_base, tmp_path, "serving.images_per_request=2").rows.values()) == 20


def test_test_slices_that_the_gate_would_object_to_are_refused_before_training(
    rows: list[dict[str, Any]], moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    write_rows(tmp_path / "source", [{**rows[0], "slice": "extra", "split": "train"}, *rows[1:]])
    _prepare(configure, moe_base, tmp_path)  # a slice that is only trained on needs none
    with pytest.raises(BadInput, match=r"no requirement for printed: add one for each, such as \{slice: printed, mar"):
        _prepare(configure, moe_base, tmp_path, requiring("other"))
    with pytest.raises(BadInput, match=r"no test row of extra: add some \(data\.test_share\), or take the requirement"):
        _prepare(configure, moe_base, tmp_path, requiring("printed", "extra"))


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
    with pytest.raises(DataRejected, match=r"no such (folder|built-in)"):
        prepare(configure(f"data.source={source}"), tmp_path, moe_base)


def test_a_killed_step_leaves_nothing_that_looks_whole_and_starts_over(
    data: Dataset, source: Path, moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    config = configure(f"data.source=file://{source}", ALL)
    run_until_killed("training.data.write_manifest", 1, "prepare", config, tmp_path, moe_base)
    assert not (tmp_path / "data").exists()
    assert prepare(config, tmp_path, moe_base).digest == data.digest
