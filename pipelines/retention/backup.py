"""`vlmops backup`: what cannot be made again, copied while everything runs, into a folder that is whole or not there.

    DEST/manifest.json          written last: every file with its SHA-256, the time, the home it is of
    DEST/home/state/            MLflow's database and files, secrets, Caddy's authority, who serves, the deploy log
    DEST/home/sealed/           who was judged on which test split
    DEST/home/runs/, cache/     with `models`: what the versions behind aliases are served from
    DEST/mlflow.pgdump          instead of state/mlflow.db, where MLflow is on PostgreSQL
    DEST/mlflow-artifacts/      instead of state/mlflow-artifacts, where its files lie elsewhere

The database is copied first. What is copied after it may be newer, as after a crash at that moment, which a promotion
and its recovery are made for. Airflow's own database is not in it: runs are folders, and Dags make new ones.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipelines.errors import BadInput, MachineUnfit, VlmopsError
from pipelines.retention.database import POSTGRESQL, SQLITE, DatabaseFailed, Postgres, copy_sqlite
from pipelines.retention.last import Backup, note_backup
from pipelines.settings import Settings
from pipelines.system.durable import commit, partial_of
from pipelines.system.manifest import write_manifest

FORMAT: Final = 1

STATE: Final = ("mlflow-artifacts", "secrets", "serving/caddy/caddy/pki")
"""Folders of the state that are copied whole; the last is Caddy's own authority, which clients trust."""

SERVING: Final = ("deploy.jsonl", "serving.json", "confirmed.json")
"""Of the serving folder; the engines' logs and the front's switch are of this hour."""

ARTIFACTS: Final = "mlflow-artifacts"
"""In a backup: MLflow's files, where they are not in the home."""

SPARE_BYTES: Final = 64 * 2**20
"""Free beyond what is copied."""


class BackupFailed(VlmopsError):
    """No backup was made."""


def back_up(
    settings: Settings,
    source: Path | Postgres,
    to: Path,
    models: tuple[Path, ...] = (),
    *,
    artifacts: Path | None = None,
) -> Backup:
    """Make a backup.

    Args:
        settings: `home` is what is copied.
        source: MLflow's database.
        to: A folder that is not there yet; beside it lies an unfinished one until then.
        models: Folders and files in the home that are copied too.
        artifacts: MLflow's files, where they are not in the home.

    Raises:
        BadInput: `to` is there, or lies in the home, or there is nothing to copy.
        MachineUnfit: The disk is too small, or pg_dump is missing.
        BackupFailed: It could not be written, and nothing is left of it; or another one is being made.
    """
    _require_source(settings, source, artifacts)
    with _sole_backup(settings):
        return _make(settings, source, to.resolve(), models, artifacts)


@contextmanager
def _sole_backup(settings: Settings) -> Iterator[None]:
    """One at a time: of two with the same name, one would take for whole what the other has copied so far."""
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.state / "backup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupFailed(f"another backup of {settings.home} is being made; wait for it") from None
        yield


def _make(
    settings: Settings, source: Path | Postgres, to: Path, models: tuple[Path, ...], artifacts: Path | None
) -> Backup:
    _require_place(settings, to)
    folders = {path: path.stat() for path in (settings.state, artifacts) if path is not None}
    began, moment = time.monotonic(), datetime.now(UTC)
    _require_room(to, sum(map(_size, _places(settings, models, artifacts))), source)
    partial = partial_of(to)
    try:
        _start(partial)
        if artifacts is not None:
            (partial / ARTIFACTS).mkdir()  # also where there are none yet: a restore asks for them in the same place
        _copy_database(source, partial)
        for path, place in _places(settings, models, artifacts).items():  # looked for now: the database knows of them
            (_copy_what_is_left if ARTIFACTS in place.parts else copy)(path, partial / place)
        _require_still_there(folders)
        digest = write_manifest(partial, format=FORMAT, time=moment.isoformat(), home=str(settings.home))
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        commit(partial, to)
        made = Backup(time=moment, path=to, digest=digest, size=size, seconds=round(time.monotonic() - began, 1))
        note_backup(settings.home, made)
    except (OSError, DatabaseFailed) as error:
        done = "is whole, and its date could not be noted" if to.exists() else "was not made"
        raise BackupFailed(f"the backup {to} {done}: {error}; make room, and start again with another name") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _require_place(settings: Settings, to: Path) -> None:
    if to.exists():
        raise BadInput(f"{to} is there already; name a folder that is not, such as one with today's date")
    if to.is_relative_to(settings.home):
        raise BadInput(f"{to} lies in {settings.home}, and would be lost with it; name a place on another disk")


def _require_source(settings: Settings, source: Path | Postgres, artifacts: Path | None) -> None:
    if isinstance(source, Path) and not source.is_file():
        raise BadInput(
            f"{source} is not there: MLflow has kept nothing in {settings.home}. Is its database elsewhere, name the "
            f"variable with its address by retention.mlflow_database_from"
        )
    if artifacts is not None and not artifacts.is_dir():
        raise BadInput(f"{artifacts} (retention.mlflow_artifacts) is no folder; name the one where MLflow keeps files")


def _require_room(to: Path, size: int, source: Path | Postgres) -> None:
    size += source.stat().st_size if isinstance(source, Path) else 0
    disk = next(parent for parent in to.parents if parent.is_dir())
    if (free := shutil.disk_usage(disk).free) < size + SPARE_BYTES:
        raise MachineUnfit(f"{disk} has {free / 1e9:.2f} GB free, and the backup takes {size / 1e9:.2f} GB; make room")


def _places(settings: Settings, models: tuple[Path, ...], artifacts: Path | None) -> dict[Path, Path]:
    """Every file that is copied, and its place in the backup."""
    places = {path: Path("home") / path.relative_to(settings.home) for path in _files(settings, models)}
    if artifacts is not None:
        places |= {path: Path(ARTIFACTS) / path.relative_to(artifacts) for path in _plain_files(artifacts)}
    return places


def _files(settings: Settings, models: tuple[Path, ...]) -> Iterator[Path]:
    """Everything that is copied as a file; links are not followed, and not copied."""
    folders = [settings.state / name for name in STATE] + [settings.sealed]
    single = [settings.serving / name for name in SERVING] + [path for path in models if not path.is_dir()]
    for folder in (*folders, *(path for path in models if path.is_dir())):
        yield from _plain_files(folder)
    yield from (path for path in single if _is_plain(path))


def _plain_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (path for name in names if _is_plain(path := Path(parent, name)))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.suffix != ".lock" and not path.name.endswith(".partial")


def _require_still_there(folders: Mapping[Path, os.stat_result]) -> None:
    """Files of MLflow may go one by one, and not all of them, because a disk was unmounted or a backup restored."""
    for path, before in folders.items():
        if not os.path.samestat(path.stat(), before):
            raise BackupFailed(f"{path} was replaced while it was copied; nothing is left of the backup, start again")


def _size(path: Path) -> int:
    """In bytes; of a file that went while we looked, none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _start(partial: Path) -> None:
    """An empty folder for its owner alone: there are secrets in it."""
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir(mode=0o700)


def _copy_database(source: Path | Postgres, partial: Path) -> None:
    if isinstance(source, Postgres):
        source.dump(partial / POSTGRESQL)
        return
    target = partial / "home" / SQLITE
    target.parent.mkdir(parents=True)
    copy_sqlite(source, target)
    target.chmod(0o600)


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a file with its mode; durable on return."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copystat(source, target)
    with Path(target).open("rb") as copied:
        os.fsync(copied.fileno())


def _copy_what_is_left(source: Path, target: Path) -> None:
    """The same of a file of MLflow, which deletes some: one that went since it was listed is left out."""
    try:
        copy(source, target)
    except FileNotFoundError:
        if source.exists():
            raise
