"""Rows as Hugging Face `datasets` keeps them: a `save_to_disk` folder, or parquet files. No loading script is ever run.

Images are objects with `bytes` and `path`; a path alone counts from the source's folder. A folder of splits
(`dataset_dict.json`) and files named for splits (`data/train-00000-of-00002.parquet`) say which split a row is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataRejected
from training.chat.messages import Split
from training.chat.rejects import Origin
from training.formats.record import Record, named_split

ROWS = 16
"""Rows that are turned into objects at once: their images are in memory."""

CHATS = {"messages", "conversations"}


@dataclass(frozen=True)
class Table:
    """One file of rows."""

    path: Path
    split: Split | None


def find_tables(folder: Path) -> list[Table]:
    """The tables of a folder; none if `datasets` did not write it.

    Raises:
        DataRejected: A split or a file that the folder promises is not there.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        return [Table(path, named_split(name)) for name in names for path in _saved(folder, name)]
    if (folder / "state.json").is_file():
        return [Table(path, None) for path in _saved(folder, "")]
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    return [Table(path, named_split(path.name)) for path in files]


def count_rows(table: Table) -> int:
    """How many rows."""
    if table.path.suffix != ".parquet":
        return sum(batch.num_rows for batch in _batches(table.path))
    with _readable(table.path), pq.ParquetFile(table.path) as file:
        return int(file.metadata.num_rows)


def read_table(folder: Path, table: Table) -> Iterator[Record]:
    """The rows of a table.

    Raises:
        DataRejected: It has no column with chats, or is damaged.
    """
    name, number = str(table.path.relative_to(folder)), 0
    for batch in _batches(table.path):
        for start in range(0, batch.num_rows, ROWS):
            for fields in batch.slice(start, ROWS).to_pylist():
                number += 1
                yield Record(Origin(name, number), _known(fields), table.split)


def _saved(folder: Path, split: str) -> list[Path]:
    home = folder / split
    state = home / "state.json"
    if not state.is_file():
        raise DataRejected(f"{home}: no state.json; the folder was not saved whole by datasets.save_to_disk")
    files = [home / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    if lost := [path for path in files if not path.is_file() or path.parent != home]:
        raise DataRejected(f"{lost[0]}: named in {state} and not in that folder; save the data set again")
    return files


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with _readable(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                _require_chats(path, file.schema_arrow.names)
                yield from file.iter_batches(batch_size=ROWS)
        else:
            with pa.memory_map(str(path)) as memory, pa.ipc.open_stream(memory) as stream:
                _require_chats(path, stream.schema.names)
                yield from stream


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataRejected(f"{path}: not a whole table: {error}; save the data set again") from None


def _require_chats(path: Path, columns: list[str]) -> None:
    if not CHATS & set(columns):
        raise DataRejected(f"{path}: columns {', '.join(columns)}; one must be {' or '.join(sorted(CHATS))}")


def _known(value: Any) -> Any:
    """Objects without the fields that have no value: a table gives every row every field."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    return [_known(inner) for inner in value] if isinstance(value, list) else value
