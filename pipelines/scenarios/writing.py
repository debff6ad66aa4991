"""A pack written from rows and images of elsewhere: whole and right, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import JsonValue

from pipelines.errors import BadInput
from pipelines.scenarios.check import Findings, examine
from pipelines.scenarios.pictures import Unfit, read_pictures
from pipelines.scenarios.problem import ITEMS, PACK, Problem, bad_input
from pipelines.system.durable import commit, partial_of


@dataclass(frozen=True)
class Row:
    """What becomes an item."""

    line: int
    """Of the file that it comes from, from 1."""

    images: tuple[str, ...]
    """Paths below the folder of the images."""

    item: Mapping[str, JsonValue]
    """As in `items.jsonl`, images apart."""


def write_pack(pack: Mapping[str, object], rows: Sequence[Row], origin: Path, images: Path, out: Path) -> Findings:
    """Copy what is fit and check the result as any pack.

    Args:
        pack: As in `pack.yaml`.
        rows: In order.
        origin: The file that they come from, whose lines problems are told of.
        images: The folder that their images are named from.
        out: The pack's folder; it may not exist yet.

    Raises:
        BadInput: Something is wrong with a row, an image or the pack; lists every problem.
    """
    if out.exists():
        raise BadInput(f"{out} is there already; name a folder that is not")
    partial = partial_of(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        found = _write(pack, rows, origin, images, partial)
        commit(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(found, folder=out)


def _write(pack: Mapping[str, object], rows: Sequence[Row], origin: Path, images: Path, folder: Path) -> Findings:
    (folder / "images").mkdir(parents=True)
    (folder / PACK).write_text(yaml.safe_dump(dict(pack), sort_keys=False, allow_unicode=True), encoding="utf-8")
    checked = read_pictures(images, (path for row in rows for path in row.images))
    problems, lines = [], []
    for row in rows:
        unfit = [f"image {path!r} {checked[path]}" for path in row.images if isinstance(checked[path], Unfit)]
        problems += [Problem(origin.name, row.line, why) for why in unfit]
        if not problems:
            lines.append({**row.item, "images": _copy(images, row, folder)})
    if not problems:
        (folder / ITEMS).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        found = examine(folder)
        problems = [_of_origin(problem, origin, rows) for problem in found.problems]
    if problems:
        raise bad_input(origin, problems)
    return found


def _copy(images: Path, row: Row, folder: Path) -> list[JsonValue]:
    """The row's images, each under a name of its own."""
    names: list[JsonValue] = []
    for number, path in enumerate(row.images):
        name = f"images/{row.line:05d}-{number}{Path(path).suffix.lower()}"
        shutil.copyfile(images / path, folder / name)
        names.append(name)
    return names


def _of_origin(problem: Problem, origin: Path, rows: Sequence[Row]) -> Problem:
    if problem.file != ITEMS or not rows:
        return problem
    return replace(problem, file=origin.name, line=rows[problem.line - 1].line)
