"""`vlmops scenario`: packs listed, checked, and made of your own images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.errors import BAD_INPUT, DONE
from pipelines.scenarios.check import Findings, examine
from pipelines.scenarios.importing import import_table
from pipelines.scenarios.items import Item
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pack_file import read_pack
from pipelines.scenarios.planning import CHANGED, wanted_items
from pipelines.scenarios.shelf import find_pack, shipped_packs


def add_scenario(command: argparse.ArgumentParser) -> None:
    """The verbs of `vlmops scenario`."""
    verbs = command.add_subparsers(required=True, metavar="VERB")
    check = verbs.add_parser("check", help="everything that is wrong with a pack, and what it holds")
    check.add_argument("pack", help="a folder, or the name of a shipped pack")
    check.set_defaults(command=lambda args: check_pack(args.pack))
    shelf = verbs.add_parser("list", help="the packs and templates that are shipped")
    shelf.set_defaults(command=lambda _: list_packs())
    make = verbs.add_parser("import", help="make a pack of a template, a table of labels and your own images")
    make.add_argument("template", help="a shipped one, such as medical, or a folder with pack.yaml")
    make.add_argument("table", type=Path, help="CSV with the columns image and label; also id, slice, prompt")
    make.add_argument("--images", type=Path, required=True, help="the folder that the table's images are named from")
    make.add_argument("--out", type=Path, required=True, help="the pack's folder, to be made")
    make.set_defaults(command=lambda args: import_pack(args.template, args.table, args.images, args.out))
    _add_convert(verbs.add_parser("convert", help="make a pack of an lm-eval task with local data"))


def _add_convert(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("task", type=Path, help="YAML of a task that generates, with JSON data beside it")
    convert.add_argument(
        "--margin", type=float, required=True, help="largest loss that the gate tolerates, such as 0.05"
    )
    convert.add_argument("--out", type=Path, required=True, help="the pack's folder, to be made")
    convert.set_defaults(command=lambda args: convert_pack(args.task, args.margin, args.out))


def check_pack(name: str) -> int:
    """Print what is wrong with a pack, what it lacks, and what it holds.

    Returns:
        The exit code: bad input if something is wrong.

    Raises:
        BadInput: There is no such folder.
    """
    found, console = examine(_folder(name)), Console()
    for problem in found.problems:
        _say(console, str(problem))
    if found.pack is not None:
        _show(console, found, found.pack)
    _say(console, f"{len(found.problems)} problem(s)" if found.problems else "nothing is wrong")
    return BAD_INPUT if found.problems else DONE


def list_packs() -> int:
    """Print the shipped packs and templates."""
    table = Table("name", "kind", "slices", "what it asks", box=None)
    for folder in shipped_packs():
        pack, problems = read_pack(folder)
        if pack is None:
            table.add_row(Text(folder.name), "broken", "", Text(str(problems[0])))
        else:
            kind = "template" if pack.template else "pack"
            description = Text(" ".join(pack.description.split()))  # brackets in it are no markup
            table.add_row(pack.name, kind, ", ".join(pack.slices), description)
    Console().print(table)
    return DONE


def import_pack(template: str, table: Path, images: Path, out: Path) -> int:
    """Make a pack and print what it holds.

    Raises:
        BadInput: Something is wrong; nothing was written.
    """
    return _show_written(import_table(_folder(template), table, images, out))


def convert_pack(task: Path, margin: float, out: Path) -> int:
    """Make a pack of an lm-eval task and print what it holds.

    Raises:
        BadInput: The task cannot be converted; nothing was written.
    """
    from pipelines.scenarios.lm_eval import convert_task  # with the templates that no other command needs

    return _show_written(convert_task(task, margin, out))


def _folder(name: str) -> Path:
    """A folder as a person at the command line names it, or a shipped pack."""
    return Path(name) if Path(name).is_dir() else find_pack(name)


def _show_written(found: Findings) -> int:
    console = Console()
    assert found.pack is not None
    _show(console, found, found.pack)
    way = "say in its pack.yaml whose the images are, then name it in evaluate.scenarios"
    _say(console, f"written: {found.folder}; {way}")
    return DONE


def _show(console: Console, found: Findings, pack: Pack) -> None:
    if pack.template:
        way = f"vlmops scenario import {pack.name} TABLE.csv --images DIR --out DIR"
        _say(console, f"{pack.name} is a template: no images come with it. Make a pack of your own: {way}")
    table = Table("slice", "scorer", "items", "images", "least right", "margin", "items for it", box=None)
    for name, each in pack.slices.items():
        items = _items(found, name)
        images = {image for item in items for image in item.images}
        margin = "must be better" if each.gate.superiority else f"{each.gate.margin:g}"
        counts = (str(len(items)), str(len(images)), f"{each.gate.minimum:g}", margin, str(wanted_items(each) or "-"))
        table.add_row(name, each.scorer.name, *counts)
    console.print(table)
    for warning in () if pack.template else _too_few(found, pack):
        _say(console, warning)


def _too_few(found: Findings, pack: Pack) -> Iterator[str]:
    for name, each in pack.slices.items():
        n, wanted = len(_items(found, name)), wanted_items(each)
        if wanted is not None and n < wanted:
            yield (
                f"warning: slice {name}: {n} items seldom decide a margin of {each.gate.margin:g}; {wanted} do in four "
                f"of five cases, if {CHANGED:.0%} of the answers change. Write more, or widen the margin"
            )


def _items(found: Findings, name: str) -> list[Item]:
    return [item for item in found.items.values() if item.slice == name]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
