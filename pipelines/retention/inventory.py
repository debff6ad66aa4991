"""What takes room on this machine and may be deleted: runs, checkpoints, exports, bases, what a killed gc left.

Links are never followed: what is behind one is somebody else's.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pipelines.retention.registered import local_path
from pipelines.settings import Settings

Kind = Literal["run", "checkpoints", "export", "base", "trash"]

TRASH: Final = ".trash"
"""Beside what is deleted: renamed into it at once, and removed from it at leisure."""

BASES: Final = ("bases", "bases-exported", "models")
"""Folders of the cache with base models: as published, in a scheme that is served, built in."""


@dataclass(frozen=True)
class Item:
    """Something that is kept or goes as a whole."""

    kind: Kind
    path: Path
    size: int
    """Bytes on the disk."""

    changed: datetime
    link: bool = False


def items(settings: Settings, *, shared_cache: bool = True) -> tuple[Item, ...]:
    """Everything there is.

    Args:
        settings: Of this machine.
        shared_cache: A cache outside the home is shared with others, and left alone.
    """
    found = [item for run in run_folders(settings) for item in _of_run(run)]
    if not shared_cache or settings.cache.is_relative_to(settings.home):
        found += [_item("base", path) for name in BASES for path in _folders(settings.cache / name)]
    found += [_item("trash", path) for place in trash_places(settings) for path in _folders(place / TRASH)]
    return tuple(found)


def trash_places(settings: Settings) -> tuple[Path, ...]:
    """Folders that may have trash in them."""
    return (settings.runs, *(settings.cache / name for name in BASES))


def run_folders(settings: Settings) -> tuple[Path, ...]:
    """Folders with a run in them."""
    return tuple(path for path in _folders(settings.runs) if (path / "config.json").is_file())


def _of_run(run: Path) -> Iterator[Item]:
    yield _item("run", run)
    if run.is_symlink():
        return
    checkpoints = run / "finetune" / "checkpoints"
    if checkpoints.is_dir() and not checkpoints.is_symlink():
        yield _item("checkpoints", checkpoints)
    yield from (_item("export", path) for path in _folders(run / "exports"))


def _folders(parent: Path) -> tuple[Path, ...]:
    """The folders in a folder, unless that is itself behind a link. Unfinished ones count, trash does not."""
    if not parent.is_dir() or parent.is_symlink():
        return ()
    return tuple(sorted(path for path in parent.iterdir() if path.is_dir() and path.name != TRASH))


def _item(kind: Kind, path: Path) -> Item:
    if path.is_symlink():
        return Item(kind, path, 0, datetime.fromtimestamp(path.lstat().st_mtime, UTC), link=True)
    inside = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    files = {facts.st_ino: facts for facts in map(_facts, inside) if facts is not None}  # links to one file count once
    own = _facts(path)
    times = [facts.st_mtime for facts in files.values()] + ([] if own is None else [own.st_mtime])
    newest = max(times, default=time.time())
    size = sum(facts.st_blocks * 512 for facts in files.values())
    return Item(kind, path, size, datetime.fromtimestamp(newest, UTC))


def _facts(path: Path) -> os.stat_result | None:
    """Of a file or folder itself; None of one that went while we looked: a run that goes on deletes checkpoints."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def step_locks(run: Path) -> tuple[Path, ...]:
    """The locks of a run's steps."""
    return tuple(sorted(run.glob("*/.lock")))


def held(lock: Path) -> bool:
    """Whether a living process holds a lock."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def finished(run: Path) -> bool:
    """Whether a run came to its end: it registered, was refused, or put a version into service."""
    if any((run / step / "output.json").is_file() for step in ("register", "promote")):
        return True
    gate = run / "gate" / "output.json"
    return gate.is_file() and json.loads(gate.read_text())["artifact"].get("outcome") in {"fail", "inconclusive"}


def registrations(settings: Settings) -> frozenset[tuple[str, int]]:
    """Name and number of every version that runs registered."""
    outputs = (run / "register" / "output.json" for run in run_folders(settings))
    made = (json.loads(output.read_text())["artifact"] for output in outputs if output.is_file())
    return frozenset((str(each["name"]), int(each["version"])) for each in made if "version" in each)


def named_paths(*files: Path) -> Iterator[Path]:
    """Every place on this machine that JSON files name, whatever the field: also those of other versions of vlmops."""
    for file in files:
        if file.is_file():
            yield from _paths(json.loads(file.read_text()))


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str) and (path := local_path(value)) is not None:
        yield path
