"""Everything that is wrong with a pack, found at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import BadInput
from pipelines.scenarios.items import Item, read_items
from pipelines.scenarios.located import line_of
from pipelines.scenarios.opened import OpenPack
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pack_file import read_pack, require_items
from pipelines.scenarios.pictures import Picture, Unfit, read_pictures
from pipelines.scenarios.problem import ITEMS, PACK, Problem, bad_input


@dataclass(frozen=True)
class Findings:
    """What a folder holds, as far as it can be read."""

    folder: Path
    pack: Pack | None
    items: dict[int, Item] = field(default_factory=dict)
    """By line."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def open_pack(folder: Path) -> OpenPack:
    """A pack that can be asked.

    Raises:
        BadInput: It is a template, or something is wrong with it; lists every problem.
    """
    found, pack = _right(folder, pictures=True)
    contents = {path: picture.content for path, picture in found.pictures.items()}
    return OpenPack(folder, pack, tuple(found.items.values()), contents, found.pictures)


def require_right(folder: Path) -> Pack:
    """Check everything but the images, which takes long where there are many.

    Raises:
        BadInput: It is a template, or something is wrong with it; lists every problem.
    """
    _, pack = _right(folder, pictures=False)
    return pack


def _right(folder: Path, *, pictures: bool) -> tuple[Findings, Pack]:
    found = examine(folder, pictures=pictures)
    if found.problems or found.pack is None:
        raise bad_input(folder, found.problems)
    require_items(folder, found.pack)
    return found, found.pack


def examine(folder: Path, *, pictures: bool = True) -> Findings:
    """Read a folder and find every problem; nothing is raised for what is wrong with it.

    Args:
        folder: Of a pack or template.
        pictures: Whether images are opened too.

    Raises:
        BadInput: There is no such folder.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; a pack is a folder with {PACK}, {ITEMS} and images")
    pack, problems = read_pack(folder)
    if pack is not None and pack.template:
        return Findings(folder, pack, problems=tuple(_template_problems(folder)))
    if not (folder / ITEMS).is_file():
        return Findings(folder, pack, problems=(*problems, Problem(ITEMS, 1, "is not there; write one item a line")))
    items, unread = read_items((folder / ITEMS).read_bytes())
    shown, unfit = _pictures(folder, items) if pictures else ({}, [])
    problems += [*unread, *_repeated(items), *unfit]
    if pack is not None:
        problems += [
            *_mismatched(pack, items),
            *_slices(folder, pack, items),
            *_limits(folder, pack, items),
        ]
    return Findings(folder, pack, items, shown, tuple(sorted(problems)))


def _template_problems(folder: Path) -> Iterator[Problem]:
    if (folder / ITEMS).exists():
        yield Problem(ITEMS, 1, f"a template has no items; say `template: false` in {PACK}")


def _pictures(folder: Path, items: dict[int, Item]) -> tuple[dict[str, Picture], list[Problem]]:
    """Each image once, and a problem at the first item that shows an unfit one."""
    first = {path: line for line, item in reversed(items.items()) for path in item.images}
    found = read_pictures(folder, first)
    unfit = [
        Problem(ITEMS, first[path], f"image {path!r} {each}") for path, each in found.items() if isinstance(each, Unfit)
    ]
    return {path: each for path, each in found.items() if isinstance(each, Picture)}, unfit


def _repeated(items: dict[int, Item]) -> Iterator[Problem]:
    ids: dict[str, int] = {}
    asked: dict[tuple[object, ...], int] = {}
    for line, item in items.items():
        if (first := ids.setdefault(item.id, line)) != line:
            yield Problem(ITEMS, line, f"id {item.id!r} is that of line {first} too; each item needs its own")
        question = (item.slice, item.images, item.prompt, item.system)
        if (first := asked.setdefault(question, line)) != line:
            yield Problem(ITEMS, line, f"{item.id}: asks what line {first} asks of the same images; leave one out")


def _mismatched(pack: Pack, items: dict[int, Item]) -> Iterator[Problem]:
    for line, item in items.items():
        if (slice_ := pack.slices.get(item.slice)) is None:
            known = ", ".join(pack.slices)
            yield Problem(ITEMS, line, f"{item.id}: slice {item.slice!r} is not in {PACK}; there are {known}")
            continue
        if item.prompt is None and slice_.prompt is None:
            yield Problem(ITEMS, line, f"{item.id}: has no prompt, and neither has slice {item.slice}")
        if reason := _not_scored_1(pack, item):
            yield Problem(ITEMS, line, f"{item.id}: expected {item.expected_text[:80]!r} {reason}")


def _not_scored_1(pack: Pack, item: Item) -> str | None:
    """Why an item cannot be answered rightly, if so: what its own scorer does not find right, no model can be."""
    scorer, expected = pack.slices[item.slice].scorer, item.expected_text
    if item.expected is None or (isinstance(item.expected, list) and None in item.expected):
        return "says null, which no answer is"
    if reason := scorer.objection(expected):
        return f"cannot be scored by {scorer.name}: {reason}"
    if (score := scorer.score(scorer.ideal(expected), expected).score) < 1:
        return f"is scored {score:g} by its own scorer, {scorer.name}"
    return "would find an answer without a word right" if scorer.score("", expected).score == 1 else None


def _slices(folder: Path, pack: Pack, items: dict[int, Item]) -> Iterator[Problem]:
    text, asked = (folder / PACK).read_text(encoding="utf-8"), {item.slice for item in items.values()}
    for name in pack.slices.keys() - asked:
        yield Problem(PACK, line_of(text, ("slices", name)), f"slice {name} has no item; write some or leave it out")


def _limits(folder: Path, pack: Pack, items: dict[int, Item]) -> Iterator[Problem]:
    """A limit on what no answer will ever be marked with would fail the gate, long after."""
    text, marks = (folder / PACK).read_text(encoding="utf-8"), marks_of(pack, items)
    for number, limit in enumerate(pack.limits):
        if limit.metric not in marks:
            known = ", ".join(sorted(marks)) or "none"
            reason = f"limit {limit.metric!r} is on what no answer is marked with; there are {known}"
            yield Problem(PACK, line_of(text, ("limits", number)), reason)


def marks_of(pack: Pack, items: dict[int, Item]) -> set[str]:
    """Every `slice/mark` that answers to these items bear."""
    found: set[str] = set()
    for item in items.values():
        if item.slice in pack.slices and _not_scored_1(pack, item) is None:
            scorer = pack.slices[item.slice].scorer
            scored = scorer.score(scorer.ideal(item.expected_text), item.expected_text)
            found |= {f"{item.slice}/{mark}" for mark in scored.marks}
    return found
