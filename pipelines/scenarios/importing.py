"""`vlmops scenario import`: a template, a table of labels and your own images become a pack."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from pipelines.errors import BadInput
from pipelines.scenarios.check import Findings
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pack_file import read_pack
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
            reader = csv.DictReader(file)
            _require_columns(table, reader.fieldnames or (), pack)
            rows = list(_rows(reader, pack))
    except OSError as error:
        raise BadInput(f"{table} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} is no CSV in UTF-8: {error}") from None
    if problems := [replace(row, file=table.name) for row in rows if isinstance(row, Problem)]:
        raise bad_input(table, problems)
    return [row for row in rows if isinstance(row, Row)]


def _require_columns(table: Path, columns: Sequence[str], pack: Pack) -> None:
    needed = {"image", "label"} | ({"slice"} if len(pack.slices) > 1 else set())
    if missing := sorted(needed - set(columns)):
        raise BadInput(f"{table} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise BadInput(f"{table} has two columns {', '.join(twice)}; several images of one item go into one, with `|`")
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise BadInput(f"{table}: column {', '.join(unknown)} says nothing to us; there may be {', '.join(COLUMNS)}")


def _rows(reader: csv.DictReader[str], pack: Pack) -> Iterator[Row]:
    only = next(iter(pack.slices))
    for number, row in enumerate(reader, 1):
        cells = {column: (row.get(column) or "").strip() for column in COLUMNS}
        item: dict[str, JsonValue] = {
            "id": cells["id"] or f"item-{number:05d}",
            "slice": cells["slice"] or only,
            "expected": cells["label"],
            **({"prompt": cells["prompt"]} if cells["prompt"] else {}),
        }
        yield Row(reader.line_num, tuple(map(str.strip, cells["image"].split("|"))), item)
