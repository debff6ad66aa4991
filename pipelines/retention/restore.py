"""`vlmops restore`: a backup put back, after every digest was checked and before anything was touched.

All is copied beside its place first (`.restore/` in the home). Then what was there is put aside, `state` first, and
what comes takes its place, `state` last: in between there is none, so that half a home passes for a whole one with
nobody. Killed between two renames, the next call finds what was written down and finishes.
"""

from __future__ import annotations

import fcntl
import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from pipelines.embedded.state import running_stack
from pipelines.errors import BadInput, MachineUnfit, VlmopsError
from pipelines.retention.backup import ARTIFACTS, FORMAT, SPARE_BYTES, copy
from pipelines.retention.database import POSTGRESQL, DatabaseFailed, Postgres
from pipelines.retention.last import Backup, note_backup
from pipelines.retention.plan import running
from pipelines.settings import Settings
from pipelines.system.durable import write_text
from pipelines.system.manifest import ManifestMismatch, manifest_digest, read_manifest, verify_manifest
from pipelines.system.processes import output

STAGE = ".restore"
"""In the home: what is being put back, and `moves.json` once all of it is there."""


class RestoreFailed(VlmopsError):
    """Nothing was restored."""


class Moves(BaseModel):
    """What `moves.json` holds: the renames that are under way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Path
    units: tuple[str, ...]
    """Paths below the home, in order."""

    aside: str
    """Folder of the home for what was there."""


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    source: Path
    units: tuple[str, ...]
    aside: Path | None
    """Where lies what was there before; None: nothing was."""

    made_for: Path
    """The home that the backup is of; versions name their files below it."""


def restore(
    settings: Settings,
    source: Path,
    database: Path | Postgres,
    *,
    force: bool = False,
    artifacts: Path | None = None,
) -> Restored:
    """Put a backup back.

    Args:
        settings: `home` is where it goes.
        source: The backup.
        database: MLflow's, where that is not in the home.
        force: The home may hold something; it is put aside. A PostgreSQL database is replaced.
        artifacts: Where MLflow's files go, where that is not in the home: they are added to what is there.

    Raises:
        ManifestMismatch: The backup is not whole; nothing was touched.
        BadInput: The home is not empty, or something runs on it, or the backup needs another kind of database.
        MachineUnfit: The disk is too small, or what comes back would lie on several.
        RestoreFailed: It could not be written or the database not be put back, and nothing was changed; or not be
            renamed, and the next call goes on.
    """
    if (interrupted := _interrupted(settings.home)) is not None:
        with _nothing_runs(settings):
            finished = _finish(settings.home, interrupted)
        if finished.source == source.resolve():
            return finished
    facts = read_manifest(source)
    _require_no_links(source)
    verify_manifest(source)
    _require_fit(source, facts, database, artifacts)
    _require_empty(settings.home, force=force)
    _require_one_disk(settings.home, _units(source / "home"))
    with _nothing_runs(settings):
        moves = _stage(settings.home, source.resolve(), facts)
        try:
            if artifacts is not None:
                _add(source / ARTIFACTS, artifacts)
            if isinstance(database, Postgres):
                _put_back(database, source / POSTGRESQL, replace=force)
        except VlmopsError:
            shutil.rmtree(settings.home / STAGE)
            raise
        write_text(_moves_file(settings.home), moves.model_dump_json())
        return _finish(settings.home, moves)


def _interrupted(home: Path) -> Moves | None:
    path = _moves_file(home)
    return Moves.model_validate_json(path.read_bytes()) if path.is_file() else None


def _moves_file(home: Path) -> Path:
    return home / STAGE / "moves.json"


def _put_back(database: Postgres, dump: Path, *, replace: bool) -> None:
    try:
        database.restore(dump, replace=replace)
    except DatabaseFailed as error:
        hint = "" if replace else "; --force replaces what is there, also what a restore that was killed has put back"
        raise RestoreFailed(f"{error}; nothing in the home was changed{hint}") from error


def _require_no_links(source: Path) -> None:
    """A backup has none; behind one would be files that no manifest knows."""
    if link := next((path for path in source.rglob("*") if path.is_symlink()), None):
        raise ManifestMismatch(f"{link} is a link, and no backup has any; use another backup")


def _require_one_disk(home: Path, units: Iterable[str]) -> None:
    """Only on one disk a rename is all or nothing."""
    there = next(path for path in (home, *home.parents) if path.exists())
    for unit in units:
        place = next(path for path in (home / unit, *(home / unit).parents) if path.exists())
        if place.stat().st_dev != there.stat().st_dev:
            raise MachineUnfit(
                f"{place} is on another disk than {home}, and what comes back is renamed into place; unmount it, or "
                f"take the link away, and move what came back afterwards"
            )


def _require_fit(source: Path, facts: dict[str, object], database: Path | Postgres, artifacts: Path | None) -> None:
    if facts.get("format") != FORMAT:
        raise BadInput(f"{source} is no backup of this version of vlmops (format {facts.get('format')}, not {FORMAT})")
    dumped = (source / POSTGRESQL).is_file()
    if dumped != isinstance(database, Postgres):
        what, wanted = ("PostgreSQL", "set") if dumped else ("SQLite", "leave out")
        raise BadInput(f"{source} has MLflow's metadata of {what}; {wanted} retention.mlflow_database_from")
    if (there := (source / ARTIFACTS).is_dir()) != (artifacts is not None):
        what, wanted = ("beside", "set") if there else ("in", "leave out")
        raise BadInput(f"{source} has MLflow's files {what} the home; {wanted} retention.mlflow_artifacts")


def _require_empty(home: Path, *, force: bool) -> None:
    there = [name for name in ("state", "sealed") if (home / name).is_dir() and any((home / name).iterdir())]
    if there and not force:
        raise BadInput(
            f"{home} is not empty: it has {' and '.join(there)}; restore to another VLMOPS_HOME, or use --force, "
            f"which puts them aside"
        )


@contextmanager
def _nothing_runs(settings: Settings) -> Iterator[None]:
    if (stack := running_stack(settings.state)) is not None:
        raise BadInput(f"a stack of {settings.home} is running (process {stack.pid}); stop it first")
    if busy := running(settings):
        raise BadInput(f"{busy[0].name} of {settings.home} is running, and would note its results in what is put aside")
    if (engine := _engine(settings)) is not None:
        raise BadInput(f"an engine of {settings.home} serves (process {engine}); `vlmops serving stop` first")
    with ExitStack() as locks:
        for lock, what in (("serving/lock", "a promotion"), ("backup.lock", "a backup"), ("gc.lock", "a gc")):
            if not (settings.state / lock).is_file():
                continue
            file = locks.enter_context((settings.state / lock).open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"{what} of {settings.home} is under way; wait for it") from None
        yield


def _engine(settings: Settings) -> int | None:
    """An engine in service: known by its log, which would be put aside with the state."""
    logs = settings.serving / "engines"
    return next((pid for pid in psutil.pids() if (log := output(pid)) is not None and log.parent == logs), None)


def _stage(home: Path, source: Path, facts: dict[str, object]) -> Moves:
    stage = home / STAGE
    copied = source / "home"
    size = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
    home.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(home).free) < size + SPARE_BYTES:
        raise MachineUnfit(f"{home} has {free / 1e9:.2f} GB free, and the backup takes {size / 1e9:.2f} GB; make room")
    shutil.rmtree(stage, ignore_errors=True)  # of a restore that did not get as far as renaming
    try:
        shutil.copytree(copied, stage, copy_function=copy)
        (stage / "state").mkdir(mode=0o700, exist_ok=True)
        (stage / "state").chmod(0o700)
        moment = datetime.fromisoformat(str(facts["time"]))
        note_backup(stage, Backup(time=moment, path=source, digest=manifest_digest(source), size=size, seconds=0))
    except OSError as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise RestoreFailed(f"{home} could not be written: {error}; nothing there was changed") from error
    return Moves(source=source, units=tuple(_units(stage)), aside=f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S}")


def _add(files: Path, to: Path) -> None:
    """Add MLflow's files: each lies in a folder of its run, and stands as it was written."""
    try:
        for path in (path for path in sorted(files.rglob("*")) if path.is_file()):
            copy(path, to / path.relative_to(files))
    except OSError as error:
        raise RestoreFailed(f"{to} could not be written: {error}; nothing in the home was changed") from error


def _units(stage: Path) -> Iterator[str]:
    """What is renamed as a whole: runs and bases one by one, others lie beside them; `state` last, it makes a home."""
    yield from sorted(str(path.relative_to(stage)) for path in (*stage.glob("runs/*"), *stage.glob("cache/*/*")))
    yield from (name for name in ("sealed", "state") if (stage / name).is_dir())


def _finish(home: Path, moves: Moves) -> Restored:
    """Rename everything into place; what was renamed before a kill is skipped."""
    coming = [unit for unit in moves.units if (home / STAGE / unit).exists()]
    try:
        for unit in reversed(coming):
            if (home / unit).exists():
                _rename(home / unit, _aside(home, moves.aside, unit))
        for unit in coming:
            _rename(home / STAGE / unit, home / unit)
    except OSError as error:
        raise RestoreFailed(f"{home} is half restored: {error}; mend that, and the same command goes on") from error
    _moves_file(home).unlink()
    shutil.rmtree(home / STAGE)
    put_aside = home / moves.aside
    made_for = Path(str(read_manifest(moves.source)["home"])) if moves.source.is_dir() else home
    return Restored(moves.source, moves.units, put_aside if put_aside.is_dir() else None, made_for)


def _aside(home: Path, aside: str, unit: str) -> Path:
    """Where something is put aside. After a kill a stack may have been started, and there is a second state."""
    names = itertools.chain([aside], (f"{aside}-{number}" for number in itertools.count(2)))
    return next(place for name in names if not (place := home / name / unit).exists())


def _rename(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
