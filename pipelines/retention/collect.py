"""Deleting what a plan says: renamed away under the locks, removed after, so that nothing is ever half there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import RunConflict, VlmopsError
from pipelines.registry import Registry
from pipelines.retention.inventory import TRASH, Item, run_folders, step_locks
from pipelines.retention.plan import Known, Verdict, plan, running
from pipelines.settings import Settings


@dataclass(frozen=True)
class Collected:
    """What was deleted."""

    verdicts: tuple[Verdict, ...]
    """On everything; what goes is gone."""

    freed: int
    """Bytes."""


def collect(settings: Settings, look: Callable[[], Known]) -> Collected:
    """Make a plan under the locks, and do as it says.

    Args:
        settings: Of this machine.
        look: Asks what verdicts are made from: under the locks, and once more before anything is touched, since
            measuring large folders takes a while and nobody who approves a version has a lock.

    Raises:
        RunConflict: A step of a run is running, a promotion is under way, or something came into use while the plan
            was made; nothing was deleted.
        BadInput: The registry is not the one of the runs here.
        Unreachable: MLflow does not answer, and cannot be told which versions lose their files.
    """
    with _sole_gc(settings):
        if busy := running(settings):
            raise RunConflict(f"{busy[0].name} is running; nothing is deleted, for it may use it; wait for it")
        with _no_promotion(settings):
            runs, known = run_folders(settings), look()
            verdicts = plan(known)
            going = [verdict.item for verdict in verdicts if verdict.goes]
            if look().versions != known.versions or run_folders(settings) != runs or running(settings):
                raise RunConflict("a run began or an alias moved meanwhile; nothing was deleted; start gc again")
            _tell_registry(known, going)
            trash = [item.path if item.kind == "trash" else _put_away(item, settings) for item in _whole(going)]
        for path in trash:
            _remove(path)
        for place in {path.parent for path in trash}:
            place.rmdir()
    return Collected(verdicts, sum(item.size for item in _whole(going)))


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise VlmopsError(f"{path} cannot be removed: {error}; it is in use no more, remove it by hand") from error


@contextmanager
def _sole_gc(settings: Settings) -> Iterator[None]:
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "gc.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunConflict("another gc is deleting; wait for it") from None
        yield


@contextmanager
def _no_promotion(settings: Settings) -> Iterator[None]:
    """The deploy lock, for as long as it takes to rename: a promotion that meets it fails and is asked for again."""
    settings.serving.mkdir(parents=True, exist_ok=True)
    with (settings.serving / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunConflict("a promotion is under way; nothing is deleted meanwhile; wait for it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _whole(going: Iterable[Item]) -> list[Item]:
    """Without what goes as a part of something else."""
    runs = {item.path for item in going if item.kind == "run"}
    return [item for item in going if item.kind not in {"checkpoints", "export"} or item.path.parents[1] not in runs]


def _tell_registry(known: Known, going: Iterable[Item]) -> None:
    """Versions whose files go say so on their pages, before they go."""
    lost: Mapping[str, str] = {"files": f"deleted by vlmops gc, {datetime.now(UTC):%Y-%m-%d}"}
    runs = [item.path for item in going if item.kind == "run"]
    for version in known.versions:
        if any(path.is_relative_to(run) for path in version.files for run in runs):
            Registry(known.settings, version.model).record(version.number, dict(lost))


def _put_away(item: Item, settings: Settings) -> Path:
    """Rename an item into the trash of its disk; a step that starts in the meantime keeps its run."""
    inside_run = item.kind in {"checkpoints", "export"}
    place = (settings.runs if inside_run else item.path.parent) / TRASH
    place.mkdir(exist_ok=True)
    run = item.path.parents[1] if inside_run else item.path
    target = place / "-".join((run.name, item.path.name, f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"))
    with _locked(step_locks(run) if item.kind != "base" else _cache_lock(item.path)):
        item.path.rename(target)
    return target


def _cache_lock(base: Path) -> tuple[Path, ...]:
    """Of whoever makes a base; an unfinished one, `.NAME.partial`, is made under the lock of the finished."""
    name = base.name.removeprefix(".").removesuffix(".partial") if base.name.startswith(".") else base.name
    lock = base.with_name(f".{name}.lock")
    return (lock,) if lock.is_file() else ()


@contextmanager
def _locked(locks: Iterable[Path]) -> Iterator[None]:
    with ExitStack() as stack:
        for path in locks:
            lock = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunConflict(
                    f"{path.parent} came into use; what was renamed so far goes with the next gc"
                ) from None
        yield
