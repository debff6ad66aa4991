"""What may go, and why the rest stays: the first reason that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipelines.config_retention import Retention
from pipelines.errors import BadInput
from pipelines.retention.inventory import (
    Item,
    Kind,
    finished,
    held,
    items,
    named_paths,
    registrations,
    run_folders,
    step_locks,
)
from pipelines.retention.registered import Version
from pipelines.run import RELEASES
from pipelines.settings import Settings

SERVING_FILES = ("serving.json", "confirmed.json")
"""Of the serving folder: what serves, what passed its watch, and the way back."""

TAIL: dict[Kind, int] = {"run": 2, "export": 4, "base": 2}
"""Parts that end a path and name an item wherever its home lies: runs/NAME, runs/NAME/exports/NAME, bases/NAME."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of an item."""

    item: Item
    goes: bool
    reason: str


@dataclass(frozen=True)
class Known:
    """What verdicts are made from."""

    settings: Settings
    rules: Retention
    versions: tuple[Version, ...]
    now: datetime

    def young(self, item: Item, days: float) -> bool:
        """Whether it was changed within so many days."""
        return self.now - item.changed < timedelta(days=days)


def plan(known: Known) -> tuple[Verdict, ...]:
    """A verdict on everything there is.

    Raises:
        BadInput: The registry is another one than that of the runs here: nobody knows what is referred to.
    """
    _require_our_registry(known)
    found = items(known.settings, shared_cache=known.rules.shared_cache)
    newest = _newest(found, known.rules.keep_last)
    runs = {item.path: _of_run(item, known, newest) for item in found if item.kind == "run"}
    used = _used_paths(known, [path for path, verdict in runs.items() if not verdict.goes])
    rest: dict[str, Callable[[Item], Verdict]] = {
        "checkpoints": lambda item: _of_checkpoints(item, runs[item.path.parents[1]], known),
        "export": lambda item: _of_export(item, runs[item.path.parents[1]], known),
        "base": lambda item: _of_base(item, used, known),
        "trash": lambda item: Verdict(item, True, "a gc that was interrupted had deleted it"),
    }
    return tuple(runs[item.path] if item.kind == "run" else rest[item.kind](item) for item in found)


def _require_our_registry(known: Known) -> None:
    ours = registrations(known.settings)
    if ours and ours.isdisjoint((version.model, version.number) for version in known.versions):
        model, number = min(ours)
        raise BadInput(
            f"MLflow knows none of the versions that runs in {known.settings.runs} registered, {model} v{number} say; "
            f"name the server that does by VLMOPS_MLFLOW_URI. Was it lost: `vlmops restore`, or delete runs by hand"
        )


def _of_run(item: Item, known: Known, newest: frozenset[Path]) -> Verdict:
    reason = next(_reasons_for_run(item, known, newest), None)
    if reason is not None:
        return Verdict(item, False, reason)
    days, last = known.rules.keep_days, known.rules.keep_last
    return Verdict(item, True, f"nothing refers to it, it is not of the last {last}, and unchanged for {days:g} days")


def _reasons_for_run(item: Item, known: Known, newest: frozenset[Path]) -> Iterator[str]:
    run = item.path
    if item.link:
        yield "it is a link; what is behind it is not ours"
    if any(map(held, step_locks(run))):
        yield "it is running"
    yield from (f"{', '.join(v.aliases)}: {v.name}" for v in known.versions if v.aliases and _refers(v.files, item))
    if _refers(named_paths(*(known.settings.serving / name for name in SERVING_FILES)), item):
        yield "it serves, or is the way back"
    opened = known.now - timedelta(days=known.rules.open_days)
    yield from (
        f"{v.name} waits for review"
        for v in known.versions
        if not v.reviewed and v.made > opened and _refers(v.files, item)
    )
    if (run / RELEASES).is_dir():
        yield "a release was written from it"
    if run in newest:
        yield f"of the last {known.rules.keep_last}"
    if known.young(item, known.rules.keep_days):
        yield f"changed within {known.rules.keep_days:g} days"
    if not finished(run) and known.young(item, known.rules.open_days):
        yield "it has not finished, and may go on"


def _of_checkpoints(item: Item, run: Verdict, known: Known) -> Verdict:
    if run.goes:
        return Verdict(item, True, "with its run")
    folder = item.path.parents[1]
    if run.item.link or any(map(held, step_locks(folder))):
        return Verdict(item, False, run.reason)
    if finished(folder) and (folder / "finetune" / "output.json").is_file():  # gone while it is trained again
        return Verdict(item, True, "the run has finished and needs none")
    if known.young(item, known.rules.open_days):
        return Verdict(item, False, "its run has not finished, and would go on from it")
    return Verdict(item, True, f"its run has not gone on for {known.rules.open_days:g} days")


def _of_export(item: Item, run: Verdict, known: Known) -> Verdict:
    if run.goes:
        return Verdict(item, True, "with its run")
    if any(_refers(version.files, item) for version in known.versions):
        return Verdict(item, False, "a registered version is served from it")
    if _refers(named_paths(*(known.settings.serving / name for name in SERVING_FILES)), item):
        return Verdict(item, False, "it serves, or is the way back")
    if item.link or known.young(item, known.rules.keep_days):
        return Verdict(item, False, f"a link, or changed within {known.rules.keep_days:g} days")
    return Verdict(item, True, "made by hand; `vlmops export` makes it again")


def _of_base(item: Item, used: frozenset[Path], known: Known) -> Verdict:
    if item.link:
        return Verdict(item, False, "it is a link; what is behind it is not ours")
    if _refers(used, item):
        return Verdict(item, False, "a run that is kept was made from it, or what serves needs it")
    if known.young(item, known.rules.keep_days):
        return Verdict(item, False, f"changed within {known.rules.keep_days:g} days")
    return Verdict(item, True, "no run that is kept was made from it; it can be had again")


def _used_paths(known: Known, kept: Iterable[Path]) -> frozenset[Path]:
    """Every place that kept runs, versions with an alias and the serving state name."""
    files = [output for run in kept for output in run.glob("*/output.json")]
    files += [known.settings.serving / name for name in SERVING_FILES]
    return frozenset(named_paths(*files)).union(*(version.files for version in known.versions if version.aliases))


def _refers(paths: Iterable[Path], item: Item) -> bool:
    """Whether a path leads to an item or into it. Homes are moved, and mounted under other names: the end counts."""
    tail = "/".join(("", *item.path.parts[-TAIL[item.kind] :], ""))
    return any(tail in f"{path}/" for path in paths)


def _newest(found: Iterable[Item], last: int) -> frozenset[Path]:
    """The last runs, retrains and redeploys apart: many of these must not push out those."""
    runs = sorted((item for item in found if item.kind == "run"), key=lambda item: item.changed, reverse=True)
    redeploys = [item.path for item in runs if (item.path / "target").is_dir()]
    retrains = [item.path for item in runs if item.path not in redeploys]
    return frozenset((*redeploys[:last], *retrains[:last]))


def running(settings: Settings) -> tuple[Path, ...]:
    """Runs of which a step is running now."""
    return tuple(run for run in run_folders(settings) if any(map(held, step_locks(run))))
