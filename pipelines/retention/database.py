"""MLflow's metadata while MLflow runs: SQLite by its online backup, PostgreSQL by pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from pipelines.errors import BadInput, MachineUnfit, VlmopsError
from pipelines.settings import Settings, secret
from pipelines.system.redact import redacted

SQLITE: Final = "state/mlflow.db"
"""In a backup, where the embedded stack has it."""

POSTGRESQL: Final = "mlflow.pgdump"
"""In a backup: pg_dump's custom format."""


class DatabaseFailed(VlmopsError):
    """A database could not be copied, or not be put back."""


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL database; its password travels by the environment of a child, never by an argument."""

    host: str
    port: int
    user: str
    password: str
    name: str

    @classmethod
    def of(cls, address: SplitResult) -> Postgres:
        """The database behind an address, such as `postgresql://user:password@host:5432/name`.

        Raises:
            BadInput: It names no user, host or database.
        """
        name = unquote(address.path.lstrip("/"))
        if not address.hostname or not address.username or not name:
            raise BadInput("MLflow's database needs an address such as postgresql://user:password@host:5432/name")
        password = unquote(address.password or "")
        return cls(address.hostname, address.port or 5432, unquote(address.username), password, name)

    def dump(self, to: Path) -> None:
        """Copy the database as it is at one moment, whoever writes meanwhile.

        Raises:
            MachineUnfit: pg_dump is not installed.
            DatabaseFailed: pg_dump says why.
        """
        self._call("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={to}")

    def restore(self, dump: Path, *, replace: bool) -> None:
        """Put a dump back, wholly or not at all.

        Args:
            dump: Made by `dump`.
            replace: Drop what is there first; else anything there is a failure.

        Raises:
            MachineUnfit: pg_restore is not installed.
            DatabaseFailed: pg_restore says why; nothing has changed.
        """
        drop = ("--clean", "--if-exists") if replace else ()
        options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
        self._call("pg_restore", *options, *drop, f"--dbname={self.name}", str(dump))

    def _call(self, program: str, *arguments: str) -> None:
        found = shutil.which(program)
        if found is None:
            raise MachineUnfit(
                f"{program} is not installed; install PostgreSQL's client programs, of the server's version"
            )
        called = subprocess.run(
            [found, *arguments], env=self._environment(), capture_output=True, text=True, errors="replace", check=False
        )
        if called.returncode != 0:
            raise DatabaseFailed(f"{program} of {self.name} at {self.host}: {_said(called.stderr, self.password)}")

    def _environment(self) -> dict[str, str]:
        facts = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.user, "PGDATABASE": self.name}
        return {**os.environ, **facts, "PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"}


def database(settings: Settings, variable: str | None) -> Path | Postgres:
    """Where MLflow's metadata lies: the file of an SQLite database, or a PostgreSQL database.

    Args:
        settings: Of this machine.
        variable: `retention.mlflow_database_from`.

    Raises:
        BadInput: The variable is not set, or its value is no address of either.
    """
    if variable is None:
        return settings.state / "mlflow.db"
    address = urlsplit(secret(variable))
    if address.scheme.partition("+")[0] in {"postgresql", "postgres"}:
        return Postgres.of(address)
    if address.scheme == "sqlite" and address.path.startswith("/"):
        return Path("/", unquote(address.path.lstrip("/")))
    raise BadInput(f"{variable} holds an address of {address.scheme or 'nothing'}; use postgresql:// or sqlite:///")


def copy_sqlite(source: Path, to: Path) -> None:
    """Copy an SQLite database as it is at one moment, whoever writes meanwhile, and check the copy.

    Raises:
        DatabaseFailed: It cannot be read or written, or the copy is damaged.
    """
    try:
        with closing(_opened(source, "ro")) as old, closing(sqlite3.connect(to)) as new:
            old.backup(new)
            [found] = new.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        raise DatabaseFailed(f"{source} cannot be copied to {to}: {error}") from None
    if found != "ok":
        raise DatabaseFailed(f"{source} is damaged: {found}; restore the last backup")


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=30)


def _said(output: str, password: str) -> str:
    lines: Sequence[str] = output.strip().splitlines()[-5:]
    text = "\n".join(lines) or "it said nothing"
    return redacted(text.replace(password, "[secret]") if password else text)
