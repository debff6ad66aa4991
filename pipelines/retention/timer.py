"""`vlmops backup DEST --every HOURS`: one backup in DEST whenever the newest there is old enough; the last ones stay.

    DEST/line-20261124T031500Z/     by its time in UTC; whole as long as it has its manifest

What is there decides, and not a memory: a restart, a clock that was set, another disk in DEST change nothing.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

from pipelines.errors import BadInput, VlmopsError
from pipelines.retention.backup import BackupFailed
from pipelines.retention.last import Backup
from pipelines.system.manifest import NAME as MANIFEST
from pipelines.system.manifest import read_manifest

log = logging.getLogger(__name__)

STAMP: Final = "line-%Y%m%dT%H%M%SZ"

NEVER: Final = datetime.min.replace(tzinfo=UTC)

LOOK_SECONDS: Final = 300
"""Between two looks; what failed is tried again at the next."""

ABANDONED: Final = timedelta(days=2)
"""After which an unfinished backup is nobody's: a kill left it. Another line that shares DEST may be writing one."""


@dataclass(frozen=True)
class Timer:
    """When backups are made, and how many stay."""

    home: Path
    folder: Path
    """DEST. Other homes may have backups there; each counts its own."""

    every: timedelta
    keep: int
    make: Callable[[Path], Backup]

    def run(self) -> NoReturn:
        """Go on until stopped; a failure is logged, and `BackupTooOld` stands if they go on."""
        while True:
            try:
                if (made := self.round(datetime.now(UTC))) is not None:
                    log.info("%s: %.1f MB in %.1f s, %s", made.path, made.size / 1e6, made.seconds, made.digest)
            except (VlmopsError, OSError, ValueError) as error:  # a full disk, say, or a damaged one
                log.error("%s", error)
            time.sleep(LOOK_SECONDS)

    def round(self, now: datetime) -> Backup | None:
        """Make a backup if one is due, and only then remove older ones; None: none is due.

        Raises:
            BadInput: The folder is not there; it is not made, for a disk may not be mounted.
            BackupFailed: An old one cannot be removed; and whatever making one raises.
        """
        if not self.folder.is_dir():
            raise BadInput(f"{self.folder} is not there; mount its disk, or make the folder")
        made_before = [moment for moment in map(_time, self._whole()) if moment <= now]  # the clock may have been ahead
        if made_before and now - max(made_before) < self.every:
            return None
        self._remove_remains(now)
        made = self.make(self.folder / now.strftime(STAMP))
        for old in [path for path in self._whole() if _time(path) <= now][: -self.keep]:
            _remove(old)
        return made

    def _whole(self) -> list[Path]:
        """Of this home, oldest first."""
        whole = (path for path in self._named() if not _unfinished(path) and _home_of(path) == str(self.home))
        return sorted(whole, key=_time)

    def _named(self) -> list[Path]:
        """Everything that has a name of ours, unfinished ones too."""
        return [path for path in self.folder.iterdir() if _time(path) != NEVER]

    def _remove_remains(self, now: datetime) -> None:
        """What a kill left, of a backup that was made or removed. What has a whole name may be on its way here."""
        for path in self._named():
            if _unfinished(path) and now - _time(path) > ABANDONED:
                _remove(path)


def _home_of(backup: Path) -> str | None:
    """Whose it is; None where nobody can tell: it is another user's, damaged, or not there yet."""
    try:
        return str(read_manifest(backup)["home"]) if (backup / MANIFEST).is_file() else None
    except (VlmopsError, OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s counts as nobody's backup: %s", backup, error)
        return None


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".")


def _time(path: Path) -> datetime:
    """That a name of ours says; NEVER of another."""
    try:
        return datetime.strptime(path.name.removeprefix(".").removesuffix(".partial"), STAMP).replace(tzinfo=UTC)
    except ValueError:
        return NEVER


def _remove(backup: Path) -> None:
    """Out of sight first: what a kill leaves then passes for no backup."""
    try:
        hidden = backup if _unfinished(backup) else backup.rename(backup.with_name(f".{backup.name}.partial"))
        shutil.rmtree(hidden)
    except OSError as error:
        raise BackupFailed(f"{backup} is no longer needed and cannot be removed: {error}; do so by hand") from error
