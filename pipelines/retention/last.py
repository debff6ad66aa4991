"""When the last backup was made, for whoever watches: `state/backup.json`, written when one is whole."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import BadInput
from pipelines.system.durable import write_text


class Backup(BaseModel):
    """A finished backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    """Of the state that is in it."""

    path: Path
    digest: str
    """Of its manifest."""

    size: int
    """Bytes."""

    seconds: float


def last_backup(home: Path) -> datetime | None:
    """The time of the last backup, or None: none was made.

    Args:
        home: `Settings.home`.

    Raises:
        BadInput: The record is not what we wrote.
    """
    path = _file(home)
    if not path.is_file():
        return None
    try:
        return Backup.model_validate_json(path.read_bytes()).time
    except ValidationError:
        raise BadInput(f"{path} is no record of a backup; make a new one by `vlmops backup`") from None


def note_backup(home: Path, backup: Backup) -> None:
    """Record a backup."""
    write_text(_file(home), backup.model_dump_json(indent=1))


def _file(home: Path) -> Path:
    return home / "state" / "backup.json"
