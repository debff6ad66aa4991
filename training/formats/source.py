"""A folder with rows, whatever their format: which one it is, how many rows, and the rows one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipelines.errors import DataRejected
from training.formats import arrow, json_files
from training.formats.record import Record, Style

Format = Literal["auto", "messages", "sharegpt", "datasets"]


@dataclass(frozen=True)
class Source:
    """Rows to be read."""

    folder: Path
    """Absolute; image paths start here."""

    style: Style | None
    """How rows are written; None recognises each."""

    total: int
    """Rows, empty lines included."""

    readers: tuple[Callable[[], Iterator[Record]], ...]

    def records(self) -> Iterator[Record]:
        """Every row."""
        for read in self.readers:
            yield from read()


def open_source(folder: Path, form: Format = "auto") -> Source:
    """Recognise a folder by what is in it.

    Args:
        folder: Of rows and their images.
        form: A format to insist on.

    Raises:
        DataRejected: The folder has no rows, or none in that format.
    """
    folder = Path(os.path.normpath(folder.absolute()))
    if not folder.is_dir():
        raise DataRejected(f"{folder}: no such folder; data.source names a folder that holds data.jsonl")
    tables = arrow.find_tables(folder) if form in {"auto", "datasets"} else []
    if tables:
        total = sum(map(arrow.count_rows, tables))
        return Source(folder, None, total, tuple(partial(arrow.read_table, folder, table) for table in tables))
    if form == "datasets":
        raise DataRejected(f"{folder}: neither a folder of datasets.save_to_disk nor parquet files; see data.format")
    files = json_files.find_files(folder)
    total = sum(map(json_files.count_rows, files))
    style = None if form == "auto" else form
    return Source(folder, style, total, tuple(partial(json_files.read_json, folder, file) for file in files))
