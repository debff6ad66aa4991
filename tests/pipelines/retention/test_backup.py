"""A backup is whole or not there, whoever writes meanwhile and however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.errors import BadInput, MachineUnfit
from pipelines.retention import backup
from pipelines.retention.backup import BackupFailed, back_up
from pipelines.retention.last import last_backup
from pipelines.retention.registered import Version, to_serve
from pipelines.retention.restore import restore
from pipelines.settings import Settings
from pipelines.system.manifest import ManifestMismatch, verify_manifest
from tests.pipelines.retention.conftest import content, in_child, with_small_files_only


def make(home: Settings, to: Path) -> None:
    back_up(home, home.state / "mlflow.db", to)


def test_it_holds_what_cannot_be_made_again_and_is_for_its_owner_alone(home: Settings, tmp_path: Path) -> None:
    make(home, tmp_path / "b")
    verify_manifest(tmp_path / "b")
    held = content(tmp_path / "b" / "home")
    assert set(held) == {
        "sealed/abc.jsonl", "state/mlflow-artifacts/1/report.html", "state/mlflow.db", "state/secrets/front-keys.json",
        "state/serving/deploy.jsonl", "state/serving/serving.json",
    }  # fmt: skip
    assert held["state/secrets/front-keys.json"] == (0o600, b'[{"name": "shop"}]')
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_a_database_that_is_written_to_is_copied_as_it_was_at_one_moment(home: Settings, tmp_path: Path) -> None:
    database = home.state / "mlflow.db"

    def write() -> None:
        with closing(sqlite3.connect(database, timeout=30)) as writer:
            for number in range(2, 100_000):
                writer.execute("INSERT INTO versions VALUES (?, 'half')", (number,))
                writer.execute("INSERT INTO versions VALUES (?, 'other half')", (number,))
                writer.commit()
                time.sleep(0.001)

    writer = get_context("fork").Process(target=write)
    writer.start()
    try:
        time.sleep(0.2)
        make(home, tmp_path / "b")
        with closing(sqlite3.connect(tmp_path / "b" / "home" / "state" / "mlflow.db")) as copy:
            odd = "SELECT number FROM versions WHERE number > 1 GROUP BY number HAVING COUNT(*) <> 2"
            assert copy.execute(odd).fetchall() == []
            assert copy.execute("SELECT COUNT(*) FROM versions").fetchone()[0] > 1
    finally:
        writer.kill()
        writer.join()


def test_what_the_copied_database_knows_of_is_copied_too(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written, and then noted in the database, while the backup begins."""
    copied = backup.copy_sqlite

    def meanwhile(source: Path, to: Path) -> None:
        (home.state / "mlflow-artifacts" / "late.html").write_text("late")
        copied(source, to)

    monkeypatch.setattr(backup, "copy_sqlite", meanwhile)
    make(home, tmp_path / "b")
    assert (tmp_path / "b" / "home" / "state" / "mlflow-artifacts" / "late.html").is_file()


def test_links_are_not_followed(home: Settings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "private").write_text("not ours")
    (home.state / "mlflow-artifacts" / "link").symlink_to(elsewhere)
    (home.sealed / "link.jsonl").symlink_to(elsewhere / "private")
    make(home, tmp_path / "b")
    assert not any(b"not ours" in data for _, data in content(tmp_path / "b").values())


def test_the_authority_that_clients_trust_comes_back(home: Settings, tmp_path: Path) -> None:
    """serving.tls without a certificate: another root would be a stranger to all of them."""
    local = home.serving / "caddy" / "caddy" / "pki" / "authorities" / "local"
    local.mkdir(parents=True)
    (local / "root.key").write_text("private")
    (local / "root.key").chmod(0o600)
    make(home, tmp_path / "b")
    shutil.rmtree(home.home)
    restore(home, tmp_path / "b", home.state / "mlflow.db")
    assert content(local) == {"root.key": (0o600, b"private")}


def test_its_age_can_be_read(home: Settings, tmp_path: Path) -> None:
    assert last_backup(home.home) is None
    before = datetime.now(UTC)
    make(home, tmp_path / "b")
    found = last_backup(home.home)
    assert found is not None
    assert before <= found <= datetime.now(UTC) + timedelta(seconds=1)
    (home.state / "backup.json").write_text("{}")
    with pytest.raises(BadInput, match=r"backup\.json"):
        last_backup(home.home)


def test_it_goes_to_a_place_of_its_own(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for to, said in ((tmp_path / "there", "there already"), (home.home / "backups" / "b", "lost with it")):
        with pytest.raises(BadInput, match=said):
            make(home, to)


def test_without_a_database_there_is_nothing_to_copy(home: Settings, tmp_path: Path) -> None:
    (home.state / "mlflow.db").unlink()
    with pytest.raises(BadInput, match="mlflow_database_from"):
        make(home, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_database_is_not_taken_for_a_backup(home: Settings, tmp_path: Path) -> None:
    (home.state / "mlflow.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(BackupFailed, match="was not made"):
        make(home, tmp_path / "b")
    assert list(tmp_path.iterdir()) == [home.home]


@pytest.mark.parametrize("files", [1, 60, 150])
def test_killed_in_the_middle_nothing_passes_for_whole(home: Settings, tmp_path: Path, files: int) -> None:
    for number in range(200):
        (home.state / "mlflow-artifacts" / f"{number}.txt").write_text("x" * number)
    partial = tmp_path / ".b.partial"
    process = get_context("fork").Process(target=make, args=(home, tmp_path / "b"))
    process.start()
    while sum(path.is_file() for path in partial.rglob("*")) < files and process.is_alive():
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert last_backup(home.home) is None
    with pytest.raises(ManifestMismatch):
        verify_manifest(partial)
    make(home, tmp_path / "b")
    verify_manifest(tmp_path / "b")
    assert not partial.exists()


def test_two_at_once_never_take_what_the_other_has_copied_so_far_for_whole(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = backup.copy_sqlite

    def meanwhile(source: Path, to: Path) -> None:
        monkeypatch.setattr(backup, "copy_sqlite", copied)
        with pytest.raises(BackupFailed, match="is being made; wait for it"):
            make(home, tmp_path / "b")
        copied(source, to)

    monkeypatch.setattr(backup, "copy_sqlite", meanwhile)
    make(home, tmp_path / "b")
    verify_manifest(tmp_path / "b")
    assert (tmp_path / "b" / "home" / "state" / "mlflow.db").is_file()


@pytest.mark.parametrize(("what", "said"), [("home/state", "was not made"), ("volume", "was replaced while")])
def test_a_disk_that_goes_meanwhile_leaves_no_hollow_backup(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    """Unmounted, or put aside by a restore: file after file is not there any more."""
    volume, went, copied = tmp_path / "volume", tmp_path / "went", backup.copy
    volume.mkdir()
    (volume / "report.html").write_text("a report")

    def goes(source: Path, target: Path) -> None:
        if not went.exists():
            (tmp_path / what).rename(went)
            (tmp_path / what).mkdir()
        copied(source, target)

    monkeypatch.setattr(backup, "copy", goes)
    with pytest.raises(BackupFailed, match=said):
        back_up(home, home.state / "mlflow.db", tmp_path / "b", artifacts=volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "volume", "went"]


def test_a_file_of_mlflow_that_goes_meanwhile_is_no_failure(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, copied = home.state / "mlflow-artifacts" / "1" / "report.html", backup.copy

    def goes(source: Path, target: Path) -> None:
        report.unlink(missing_ok=True)
        copied(source, target)

    monkeypatch.setattr(backup, "copy", goes)
    make(home, tmp_path / "b")
    verify_manifest(tmp_path / "b")
    assert not list((tmp_path / "b").rglob("report.html"))


def test_a_disk_that_fills_up_leaves_nothing_behind(home: Settings, tmp_path: Path) -> None:
    assert in_child(with_small_files_only, lambda: make(home, tmp_path / "b")) == 7
    assert list(tmp_path.iterdir()) == [home.home]
    assert last_backup(home.home) is None


def test_a_disk_that_is_too_small_is_seen_before(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MachineUnfit, match="make room"):
        make(home, tmp_path / "b")


def test_models_behind_aliases_can_be_taken_along(home: Settings, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = home.runs / name
        for folder in ("export/model", "evaluate/golden", "finetune/checkpoints"):
            (run / folder).mkdir(parents=True)
        (run / "config.json").write_text("{}")
        (run / "export" / "output.json").write_text("{}")
        (run / "export" / "model" / "model.safetensors").write_text(f"weights of {name}")
        (run / "evaluate" / "golden" / "golden.jsonl").write_text("{}")
        (run / "evaluate" / "golden" / "image.png").write_text("an image")
        (run / "finetune" / "checkpoints" / "large").write_text("large")
    base = home.cache / "bases-exported" / "base-int8"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_text("a base for adapters")

    def version(number: int, aliases: tuple[str, ...], run: Path) -> Version:
        files = (run, run / "export" / "model", run / "evaluate" / "golden" / "golden.jsonl", base)
        return Version("m", number, aliases, datetime.now(UTC), reviewed=True, files=files)

    versions = (version(1, (), home.runs / "one"), version(2, ("champion",), home.runs / "two"))
    back_up(home, home.state / "mlflow.db", tmp_path / "b", to_serve(versions, home))
    held = [name for name in content(tmp_path / "b" / "home") if name.startswith(("runs", "cache"))]
    assert held == [
        "cache/bases-exported/base-int8/model.safetensors",
        "runs/two/config.json", "runs/two/evaluate/golden/golden.jsonl", "runs/two/evaluate/golden/image.png",
        "runs/two/export/model/model.safetensors", "runs/two/export/output.json",
    ]  # fmt: skip
    shutil.rmtree(home.home)
    restore(home, tmp_path / "b", home.state / "mlflow.db")
    assert (home.runs / "two" / "export" / "model" / "model.safetensors").read_text() == "weights of two"
    assert (base / "model.safetensors").is_file()


def test_a_model_that_cannot_be_taken_along_is_no_silent_gap(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "elsewhere", home.runs / "gone"):
        version = Version("m", 1, ("champion",), datetime.now(UTC), reviewed=True, files=(path,))
        with pytest.raises(BadInput, match="champion is m v1"):
            to_serve((version,), home)


def test_the_commands_do_the_same(home: Settings, tmp_path: Path) -> None:
    assert cli.main(["backup", str(tmp_path / "b")]) == 0
    assert cli.main(["restore", str(tmp_path / "b")]) == 2
    assert cli.main(["restore", str(tmp_path / "b"), "--force"]) == 0
    assert last_backup(home.home) is not None
    assert cli.main(["backup", str(tmp_path / "b")]) == 2
