"""What a folder may hold: JSON lines, a JSON array, files of splits, tables of `datasets`; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import DataRejected
from training.chat.rows import Row, read_row
from training.formats.source import Format, open_source

SAVED = Path(__file__).with_name("saved")
"""Written by `datasets` 5.2.0: `splits` (a dict of splits), `messages` (TRL's columns), `columns` (before 4.0)."""

ROW = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]}


def _rows(folder: Path, images: Path, form: Format = "auto") -> list[Row]:
    source = open_source(folder, form)
    rows = [read_row(record, source.folder, images, set(), source.style) for record in source.records()]
    assert len(rows) == source.total
    return rows


def _places(folder: Path, form: Format = "auto") -> list[tuple[str, str | None]]:
    return [(str(record.origin), record.split) for record in open_source(folder, form).records()]


def _colour(row: Row, images: Path) -> Any:
    with Image.open(images / row.pictures[0].name) as image:
        return image.convert("RGB").getpixel((5, 5))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def _lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lines_are_numbered_as_an_editor_does(folder: Path) -> None:
    (folder / "data.jsonl").write_text(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n")
    assert _places(folder) == [("data.jsonl:1", None), ("data.jsonl:3", None)]


@pytest.mark.parametrize("name", ["data.json", "llava_665k.json", "rows.jsonl"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_array_is_recognised_whatever_its_name(name: str, mark: bytes, folder: Path, images: Path) -> None:
    (folder / name).write_bytes(mark + b"\n " + json.dumps([ROW, ROW]).encode())
    (folder / "dataset_info.json").write_text("{}")  # LLaMA-Factory's description is no data
    rows = _rows(folder, images)
    assert [(row.id, row.answer) for row in rows] == [(f"{name}:1", "That."), (f"{name}:2", "That.")]


def test_files_named_for_splits_say_which_split_a_row_is_of(folder: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl", "test.json"):
        _lines(folder / name, ROW)
    assert _places(folder) == [("test.json:1", "test"), ("train.jsonl:1", "train"), ("validation.jsonl:1", "eval")]


def test_a_row_that_contradicts_its_file_is_refused(folder: Path, images: Path) -> None:
    _lines(folder / "train.jsonl", {**ROW, "split": "test"})
    with pytest.raises(ValueError, match=r"split is test, and train.jsonl holds train"):
        _rows(folder, images)


def test_two_files_that_could_be_meant_are_refused(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        _lines(folder / name, ROW)
    with pytest.raises(DataRejected, match=r"which of a.jsonl, b.jsonl"):
        open_source(folder)


def test_a_broken_array_is_refused_by_name(folder: Path) -> None:
    (folder / "data.json").write_text('[{"id": ')
    with pytest.raises(DataRejected, match=r"data.json: begins as an array"):
        open_source(folder)


@pytest.mark.parametrize("form", ["auto", "messages", "datasets"])
def test_an_empty_folder_is_refused_with_what_may_be_in_it(form: Format, folder: Path) -> None:
    with pytest.raises(DataRejected, match=r"data\.jsonl|save_to_disk"):
        open_source(folder, form)
    with pytest.raises(DataRejected, match="no such folder"):
        open_source(folder / "none", form)


def test_a_format_that_is_insisted_on_is_not_guessed(folder: Path, images: Path) -> None:
    _lines(folder / "data.jsonl", {"messages": [{"role": "user", "content": "The <image> tag?"}, ROW["messages"][1]]})
    assert _rows(folder, images, "messages")[0].style == "messages"
    with pytest.raises(ValueError, match="image count"):
        _rows(folder, images)


def test_a_saved_dict_of_splits_is_read_with_its_images(images: Path) -> None:
    rows = _rows(SAVED / "splits", images)
    assert [row.split for row in rows] == ["train", "train", "eval", "test"]
    assert rows[0].id == "train/data-00000-of-00001.arrow:1"
    assert [_colour(row, images) for row in rows[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert [row.answer for row in rows[:2]] == ["Red.", "Blue."]


@pytest.mark.parametrize(("name", "answers"), [("messages", ["Red.", "Blue."]), ("columns", ["A"])])
def test_other_columns_of_datasets_are_read(name: str, answers: list[str], images: Path) -> None:
    rows = _rows(SAVED / name, images, "datasets")
    assert [row.answer for row in rows] == answers
    assert _colour(rows[0], images) == (255, 0, 0)


def test_parquet_files_are_read_and_named_splits_kept(folder: Path, images: Path) -> None:
    (folder / "data").mkdir()
    with pa.ipc.open_stream(SAVED / "messages" / "data-00000-of-00001.arrow") as stream:
        table = stream.read_all()
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(table, folder / "data" / f"{name}.parquet")
    rows = _rows(folder, images)
    assert [row.split for row in rows] == ["test", "test", "train", "train"]
    assert _colour(rows[1], images) == (0, 0, 255)


def test_code_beside_a_table_is_never_run(folder: Path, images: Path) -> None:
    shutil.copytree(SAVED / "messages", folder, dirs_exist_ok=True)
    (folder / "source.py").write_text("raise SystemExit('run')\n")
    assert len(_rows(folder, images)) == 2


def test_a_table_that_was_cut_is_refused_by_name(folder: Path, images: Path) -> None:
    shutil.copytree(SAVED / "messages", folder, dirs_exist_ok=True)
    table = folder / "data-00000-of-00001.arrow"
    table.write_bytes(table.read_bytes()[:-300])
    with pytest.raises(DataRejected, match=r"data-00000-of-00001.arrow: not a whole table"):
        _rows(folder, images)


def test_a_table_that_is_missing_or_elsewhere_is_refused(folder: Path) -> None:
    shutil.copytree(SAVED / "messages", folder, dirs_exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../elsewhere.arrow"}]}))
    (folder.parent / "elsewhere.arrow").write_bytes(b"")
    with pytest.raises(DataRejected, match="not in that folder"):
        open_source(folder)


def test_a_table_without_chats_is_refused_with_its_columns(folder: Path) -> None:
    pq.write_table(pa.table({"question": ["What?"], "answer": ["That."]}), folder / "train.parquet")
    with pytest.raises(DataRejected, match=r"columns question, answer; one must be conversations or messages"):
        list(open_source(folder).records())
