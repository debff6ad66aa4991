"""MLflow's metadata on a real PostgreSQL: dumped whole, put back wholly or not at all, its password never shown."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlsplit

import pytest

from pipelines import cli
from pipelines.errors import BadInput, MachineUnfit
from pipelines.retention.backup import back_up
from pipelines.retention.database import DatabaseFailed, Postgres, database
from pipelines.retention.restore import RestoreFailed, restore
from pipelines.settings import Settings
from pipelines.system.processes import free_port, running, wait_until
from tests.services import require

PASSWORD = "p:ss/w@rd hush"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server on loopback with the database `mlflow`; it refuses to run as root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    require(found and shutil.which("pg_dump"), "PostgreSQL is not installed (Debian: postgresql)")
    with TemporaryDirectory(prefix="vlmops-postgres-") as place:  # pytest's own folder is closed to other users
        yield from _server(found[-1].parent, Path(place))


def _server(programs: Path, folder: Path) -> Iterator[Postgres]:
    data, password, port = folder / "data", folder / "password", free_port()
    password.write_text(PASSWORD)
    as_user: list[str] = []
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        for path in (folder, password):
            shutil.chown(path, "nobody")
    login = ["--username=mlflow", f"--pwfile={password}", "--auth=scram-sha-256"]
    subprocess.run([*as_user, programs / "initdb", data, *login, "--no-sync"], check=True, capture_output=True)
    listen = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-c", "fsync=off", "-k", str(folder)]
    log = folder / "log"
    with running([*as_user, str(programs / "postgres"), "-D", str(data), *listen], log):
        there = Postgres("127.0.0.1", port, "mlflow", PASSWORD, "mlflow")
        wait_until(lambda: _answers(there), 60, lambda: MachineUnfit(log.read_text()), interval=0.1)
        sql(there, "CREATE DATABASE mlflow", name="postgres")
        yield there


def sql(server: Postgres, command: str, *, name: str = "mlflow") -> str:
    environment = {**os.environ, "PGPASSWORD": server.password}
    where = [f"--host={server.host}", f"--port={server.port}", f"--username={server.user}", f"--dbname={name}"]
    done = subprocess.run(
        ["psql", *where, "--tuples-only", "--no-align", "--command", command],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def _answers(server: Postgres) -> bool:
    try:
        return sql(server, "SELECT 1", name="postgres") == "1"
    except subprocess.CalledProcessError:
        return False


def test_it_comes_back_as_it_was_or_not_at_all(server: Postgres, home: Settings, tmp_path: Path) -> None:
    sql(server, "CREATE TABLE versions (number INTEGER); INSERT INTO versions VALUES (1), (2)")
    back_up(home, server, tmp_path / "b")
    assert not (tmp_path / "b" / "home" / "state" / "mlflow.db").exists()
    sql(server, "INSERT INTO versions VALUES (3)")
    shutil.rmtree(home.home)
    with pytest.raises(RestoreFailed, match=r"(?s)already exists.*--force replaces what is there"):
        restore(home, tmp_path / "b", server)
    assert list(home.home.iterdir()) == []
    assert sql(server, "SELECT COUNT(*) FROM versions") == "3"
    restore(home, tmp_path / "b", server, force=True)
    assert sql(server, "SELECT COUNT(*) FROM versions") == "2"
    assert (home.serving / "deploy.jsonl").is_file()


def test_the_commands_of_the_production_stack_there_and_back(
    server: Postgres, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As docs/operations.md has them, and docker-compose.yml."""
    sql(
        server, "DROP TABLE IF EXISTS versions; CREATE TABLE versions (number INTEGER); INSERT INTO versions VALUES (1)"
    )
    files = tmp_path / "mlflow"
    files.mkdir()
    (files / "report.html").write_text("a report")
    address = f"postgresql://{server.user}:{quote(PASSWORD, safe='')}@{server.host}:{server.port}/{server.name}"
    monkeypatch.setenv("MLFLOW_DATABASE_URL", address)
    where = ("--set=retention.mlflow_database_from=MLFLOW_DATABASE_URL", f"--set=retention.mlflow_artifacts={files}")
    assert cli.main(["backup", str(tmp_path / "b"), *where]) == 0
    sql(server, "INSERT INTO versions VALUES (2)")
    (files / "report.html").unlink()
    assert cli.main(["restore", str(tmp_path / "b"), "--force", *where]) == 0
    assert sql(server, "SELECT number FROM versions") == "1"
    assert (files / "report.html").read_text() == "a report"
    assert not [secret for secret in (PASSWORD, quote(PASSWORD, safe="")) if secret in "".join(capfd.readouterr())]


def test_a_failure_says_why_and_no_password(server: Postgres, tmp_path: Path) -> None:
    wrong = Postgres(server.host, server.port, server.user, PASSWORD + "!", server.name)
    with pytest.raises(DatabaseFailed, match="authentication failed") as failure:
        wrong.dump(tmp_path / "dump")
    assert PASSWORD not in str(failure.value)


def test_a_backup_of_one_kind_is_not_put_into_the_other(server: Postgres, home: Settings, tmp_path: Path) -> None:
    back_up(home, home.state / "mlflow.db", tmp_path / "b")
    with pytest.raises(BadInput, match="SQLite"):
        restore(home, tmp_path / "b", server, force=True)


def test_the_address_comes_from_the_named_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database(settings, None) == settings.state / "mlflow.db"
    monkeypatch.setenv("OUR_DATABASE", "postgresql+psycopg2://mlflow:p%3Ass%2Fw%40rd@db:5433/mlflow")
    assert database(settings, "OUR_DATABASE") == Postgres("db", 5433, "mlflow", "p:ss/w@rd", "mlflow")
    monkeypatch.setenv("OUR_DATABASE", "sqlite:////data/mlflow.db")
    assert database(settings, "OUR_DATABASE") == Path("/data/mlflow.db")
    monkeypatch.setenv("OUR_DATABASE", "mysql://u:hush@db/mlflow")
    with pytest.raises(BadInput, match="mysql") as refused:
        database(settings, "OUR_DATABASE")
    assert "hush" not in str(refused.value)
    with pytest.raises(BadInput, match="address such as"):
        Postgres.of(urlsplit("postgresql:///mlflow"))
