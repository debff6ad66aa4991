"""Answer files: Parquet, one `Answer` a row. Those of earlier versions, JSONL, are read and no longer written."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines.errors import BadInput
from pipelines.evaluation import Answer
from pipelines.system.durable import write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

ANSWERS = "answers.parquet"
EARLIER_ANSWERS = "answers.jsonl"


def answers_file(folder: Path) -> Path:
    """The answers in the folder of a measured model; where there are none, the file that is missed."""
    earlier = folder / EARLIER_ANSWERS
    return earlier if earlier.is_file() and not (folder / ANSWERS).is_file() else folder / ANSWERS


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write the file whole, or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([answer.model_dump() for answer in answers], schema=schema())
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    write_bytes(path, file.getvalue())


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers by item.

    Raises:
        BadInput: The file is missing, not whole, or of other columns.
    """
    rows = _lines(path) if path.name == EARLIER_ANSWERS else _rows(path)
    return {answer.item: answer for answer in rows}


def schema() -> pa.Schema:
    """The columns of the file: the fields of `Answer`."""
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    return pa.schema(
        [
            pa.field("item", text, nullable=False),
            pa.field("slice", text, nullable=False),
            pa.field("expected", text, nullable=False),
            pa.field("text", text, nullable=False),
            pa.field("finish_reason", text, nullable=False),
            pa.field("seconds", pa.float64(), nullable=False),
            pa.field("cluster", text),
            pa.field("score", pa.float64()),
            pa.field("marks", pa.map_(text, pa.bool_()), nullable=False),
            pa.field("prompt_tokens", number),
            pa.field("answer_tokens", number),
            pa.field("request_bytes", number),
        ]
    )


def _rows(path: Path) -> list[Answer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    if not table.schema.equals(schema()):
        raise _unreadable(path, f"its columns are {_columns(table.schema)}, wanted are {_columns(schema())}")
    try:
        return [Answer.model_validate(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except ValidationError as error:  # a score that is no number from 0 to 1
        raise _unreadable(path, error) from None


def _lines(path: Path) -> list[Answer]:
    try:
        return [Answer.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValidationError, OSError) as error:
        raise _unreadable(path, error) from None


def _columns(found: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in found)


def _unreadable(path: Path, why: Any) -> BadInput:
    return BadInput(f"{path} cannot be read as answers: {why}; evaluate again")
