"""Everything that is wrong with a pack, found at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.errors import BadInput
from pipelines.scenarios.items import Item, read_items
from pipelines.scenarios.located import line_of
from pipelines.scenarios.opened import OpenPack
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pictures import Picture, Unfit, read_picture
from pipelines.scenarios.problem import ITEMS, PACK, Problem


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
    found = examine(folder)
    if found.problems or found.pack is None:
        lines = "".join(f"\n  {problem}" for problem in found.problems)
        raise BadInput(f"{folder}: {len(found.problems)} problem(s){lines}")
    require_items(folder, found.pack)
    return OpenPack(folder, found.pack, tuple(found.items.values()), found.pictures)


def require_items(folder: Path, pack: Pack) -> None:
    """Refuse a template where a pack is wanted.

    Raises:
        BadInput: It is one.
    """
    if pack.template:
        raise BadInput(
            f"{folder} is a template: no images come with it. Make a pack of it and of your own images, and name that: "
            f"vlmops scenario import {pack.name} TABLE.csv --images DIR --out DIR"
        )


def examine(folder: Path) -> Findings:
    """Read a folder and find every problem; nothing is raised for what is wrong with it.

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
    pictures, unfit = _pictures(folder, items)
    problems += [*unread, *_repeated(items), *unfit]
    if pack is not None:
        problems += [
            *_mismatched(pack, items),
            *_slices(folder, pack, items),
            *_limits(folder, pack, items),
        ]
    return Findings(folder, pack, items, pictures, tuple(sorted(problems)))


def read_pack(folder: Path) -> tuple[Pack | None, list[Problem]]:
    """`pack.yaml` of a folder, or what is wrong with it."""
    try:
        text = (folder / PACK).read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        return Pack.model_validate(raw), []
    except OSError as error:
        return None, [Problem(PACK, 1, f"cannot be read: {error.strerror}")]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return None, [Problem(PACK, line, f"not YAML: {error.problem}")]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [Problem(PACK, 1, f"not YAML: {error}")]
    except ValidationError as error:
        return None, [_located(text, told["loc"], told["msg"]) for told in error.errors(include_url=False)]


def _located(text: str, location: tuple[str | int, ...], message: str) -> Problem:
    field = ".".join(str(part) for part in location) or PACK
    return Problem(PACK, line_of(text, location), f"{field}: {message}")


def _template_problems(folder: Path) -> Iterator[Problem]:
    if (folder / ITEMS).exists():
        yield Problem(ITEMS, 1, f"a template has no items; say `template: false` in {PACK}")


def _pictures(folder: Path, items: dict[int, Item]) -> tuple[dict[str, Picture], list[Problem]]:
    """Each image once, and a problem at the first item that shows an unfit one."""
    pictures, problems = {}, []
    first = {path: line for line, item in reversed(items.items()) for path in item.images}
    for path, line in first.items():
        try:
            pictures[path] = read_picture(folder, path)
        except Unfit as error:
            problems.append(Problem(ITEMS, line, f"image {path!r} {error}"))
    return pictures, problems


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
    scorer = pack.slices[item.slice].scorer
    if reason := scorer.objection(item.expected_text):
        return f"cannot be scored by {scorer.name}: {reason}"
    scored = scorer.score(scorer.ideal(item.expected_text), item.expected_text)
    return None if scored.score == 1 else f"is scored {scored.score:g} by its own scorer, {scorer.name}"


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
