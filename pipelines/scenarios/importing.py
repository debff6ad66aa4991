"""`vlmops scenario import`: a template, a table of labels and your own images become a pack."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from pipelines.errors import BadInput
from pipelines.scenarios.check import Findings
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pack_file import read_pack
from pipelines.scenarios.problem import Problem, bad_input
from pipelines.scenarios.writing import Row, write_pack

COLUMNS = ("image", "label", "id", "slice", "prompt")
"""The first two must be there; several images of one item are separated by `|`."""


def import_table(template: Path, table: Path, images: Path, out: Path) -> Findings:
    """Write a pack, whole or not at all.

    Args:
        template: A folder with `pack.yaml`, whose slices and rules hold.
        table: CSV with a header: `COLUMNS`. What is labelled is what is expected.
        images: The folder that the table's images are named from.
        out: The pack's folder; it may not exist yet.

    Raises:
        BadInput: Something is wrong with the table, an image or the template; lists every problem with its line.
    """
    pack, problems = read_pack(template)
    if pack is None:
        raise bad_input(template, problems)
    raw = pack.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"template": False}
    raw["images"] = {"source": f"imported by {table.name}", "license": "not said; write here what you may do with them"}
    return write_pack(raw, _read(table, pack), table, images, out)


def _read(table: Path, pack: Pack) -> list[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _require_columns(table, reader.fieldnames or (), pack)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise BadInput(f"{table} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} is no CSV in UTF-8: {error}") from None
    if problems := list(_uneven(table, rows)):
        raise bad_input(table, problems)
    return [_row(number, line, row, pack) for number, (line, row) in enumerate(rows, 1)]


def _require_columns(table: Path, columns: Sequence[str], pack: Pack) -> None:
    needed = {"image", "label"} | ({"slice"} if len(pack.slices) > 1 else set())
    if missing := sorted(needed - set(columns)):
        raise BadInput(f"{table} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise BadInput(f"{table} has two columns {', '.join(twice)}; several images of one item go into one, with `|`")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise BadInput(f"{table}: column {', '.join(unknown)} says nothing to us; there may be {', '.join(COLUMNS)}")


def _uneven(table: Path, rows: Iterable[tuple[int, Mapping[str | None, object]]]) -> Iterator[Problem]:
    """Rows whose cells stand under other columns than was meant."""
    for line, row in rows:
        if None in row:  # where `csv` puts what no column is for
            reason = "has more cells than the header; put a label that holds a comma in double quotes"
            yield Problem(table.name, line, reason)
        elif missing := [str(column) for column, cell in row.items() if cell is None]:
            yield Problem(table.name, line, f"has no cell for {', '.join(missing)}; leave a cell empty by its comma")


def _row(number: int, line: int, row: Mapping[str, str], pack: Pack) -> Row:
    cells = {column: row.get(column, "").strip() for column in COLUMNS}
    item: dict[str, JsonValue] = {
        "id": cells["id"] or f"item-{number:05d}",
        "slice": cells["slice"] or next(iter(pack.slices)),
        "expected": cells["label"],
        **({"prompt": cells["prompt"]} if cells["prompt"] else {}),
    }
    return Row(line, tuple(map(str.strip, cells["image"].split("|"))), item)
