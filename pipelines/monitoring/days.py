"""Rows by day: today's as JSON lines, which any process may append to; earlier days' as Parquet, made once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.system.durable import write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

DAY = "%Y-%m-%d"

MISFIT = (TypeError, ValueError, OverflowError)
"""What Arrow says of values that are not of their column's type."""


@dataclass(frozen=True)
class Days:
    """The rows in one folder. Each has `time`, in seconds since 1970; days are UTC's."""

    folder: Path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. One write of one line: readers and other writers never see half of it; a crash of the machine may
        lose the last seconds. What a crash or a full disk left of an earlier line is ended first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_day(float(row['time']))}.jsonl"
        with path.open("ab", buffering=0) as file:
            file.write(f"\n{json.dumps(row)}\n".encode())

    def close(self, schema: pa.Schema, now: datetime) -> None:
        """Make Parquet of the days that are over. Rows that do not fit, of another version of vlmops say, are left out.

        A day that was closed before, and had rows since (a crash before its lines were deleted, a clock that was put
        back), has each of them once.
        """
        import pyarrow.parquet as pq

        for path in sorted(self.folder.glob("*.jsonl")):
            if path.stem >= _day((now - timedelta(minutes=5)).timestamp()):
                continue  # a writer may still be at its last row
            parquet = path.with_suffix(".parquet")
            known = _rows(parquet) if parquet.is_file() else []
            times = {row["time"] for row in known}
            rows = [*known, *(row for row in _lines(path) if row["time"] not in times)]
            file = io.BytesIO()
            pq.write_table(_table(rows, schema), file, compression="zstd")
            write_bytes(parquet, file.getvalue())
            path.unlink()

    def forget(self, days: int, now: datetime) -> None:
        """Delete what is older than so many days."""
        oldest = _day((now - timedelta(days=days)).timestamp())
        for path in self.folder.glob("????-??-??.*"):
            if path.stem < oldest:
                path.unlink()

    def since(self, moment: datetime) -> Iterator[dict[str, Any]]:
        """The rows from a moment on, in the order of days."""
        for path in sorted(self.folder.glob("????-??-??.*")):
            if path.stem >= _day(moment.timestamp()):
                yield from (row for row in _rows(path) if row["time"] >= moment.timestamp())


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if path.suffix == ".jsonl":
        # A day that was closed and whose lines a crash left behind counts once.
        return [] if path.with_suffix(".parquet").is_file() else _lines(path)
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist(maps_as_pydicts="strict")
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    found = (_row(line) for line in path.read_bytes().splitlines())
    return [row for row in found if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """A line's row; None for one that a crash cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("time"), float | int) else None


def _table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    found = [{name: row.get(name) for name in schema.names} for row in rows]
    try:
        return pa.Table.from_pylist(found, schema=schema)
    except MISFIT:
        return pa.Table.from_pylist([row for row in found if _fits(row, schema)], schema=schema)


def _fits(row: dict[str, Any], schema: pa.Schema) -> bool:
    import pyarrow as pa

    try:
        pa.Table.from_pylist([row], schema=schema)
    except MISFIT:
        return False
    return True


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(DAY)
