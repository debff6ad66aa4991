"""Rows in JSON: a file of lines, or a file that is one array, told apart by its first character."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import DataRejected
from training.chat.rejects import Origin
from training.formats.record import Record, named_split

ENDINGS = {".json", ".jsonl"}
NOT_ROWS = {"dataset_info.json", "dataset_dict.json", "state.json"}
"""Descriptions that LLaMA-Factory and `datasets` keep beside the rows."""


def find_files(folder: Path) -> list[Path]:
    """The files that hold the rows of a folder: `data.jsonl`, else those named for splits, else the only one.

    Raises:
        DataRejected: There is none, or it cannot be told which ones are meant.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in ENDINGS and p.name not in NOT_ROWS and p.is_file())
    chosen = [p for p in files if p.stem == "data"] or [p for p in files if named_split(p.name)] or files
    if not chosen:
        raise DataRejected(
            f"{folder}: no data.jsonl, data.json, *.arrow or *.parquet in it; data.source names a folder"
        )
    if len(chosen) > 1 and not all(named_split(path.name) for path in chosen):
        names = ", ".join(path.name for path in chosen)
        raise DataRejected(f"{folder}: which of {names} holds the rows? Name one data.jsonl, or train, eval and test")
    return chosen


def count_rows(path: Path) -> int:
    """About how many rows a file has: the lines of a file of lines, the objects of an array."""
    if _is_array(path):
        return len(_array(path))
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def read_json(folder: Path, path: Path) -> Iterator[Record]:
    """The rows of a file; empty lines are passed over.

    Raises:
        DataRejected: It begins as an array and is none.
    """
    name, split = str(path.relative_to(folder)), named_split(path.name)
    if _is_array(path):
        yield from (Record(Origin(name, i), item, split) for i, item in enumerate(_array(path), 1))
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Record(Origin(name, number), line, split)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array(path: Path) -> list[object]:
    try:
        rows: list[object] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataRejected(f"{path}: begins as an array of rows and is not JSON: {error}") from None
    return rows
