"""One backup whenever one is due, the last ones stay, and nothing of anybody else is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.errors import BadInput
from pipelines.retention import timer as module
from pipelines.retention.backup import BackupFailed, back_up
from pipelines.retention.last import Backup
from pipelines.retention.timer import Timer
from pipelines.settings import ROOT, Settings
from pipelines.system.manifest import verify_manifest

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def timer(home: Settings, tmp_path: Path) -> Timer:
    (tmp_path / "backups").mkdir()
    return timer_of(home, tmp_path / "backups")


def timer_of(home: Settings, folder: Path) -> Timer:
    def make(to: Path) -> Backup:
        return back_up(home, home.state / "mlflow.db", to)

    return Timer(home.home, folder, DAY, 3, make)


def names(timer: Timer) -> list[str]:
    return sorted(path.name for path in timer.folder.iterdir())


def test_one_is_made_when_due_and_the_last_ones_stay(timer: Timer) -> None:
    made = [timer.round(NOON + hours * timedelta(hours=1)) for hours in range(0, 24 * 6, 8)]
    assert [each is not None for each in made] == [True, False, False] * 6
    assert names(timer) == [f"line-202611{day}T120000Z" for day in (27, 28, 29)]
    for name in names(timer):
        verify_manifest(timer.folder / name)


def test_a_restart_makes_none_and_another_disk_does(timer: Timer, home: Settings, tmp_path: Path) -> None:
    timer.round(NOON)
    assert timer_of(home, timer.folder).round(NOON + DAY / 2) is None
    (tmp_path / "new disk").mkdir()
    assert timer_of(home, tmp_path / "new disk").round(NOON + DAY / 2) is not None


def test_a_clock_that_was_ahead_neither_stops_it_nor_makes_it_run_wild(timer: Timer) -> None:
    timer.round(NOON + 400 * DAY)
    made = [timer.round(NOON + hours * timedelta(hours=1)) for hours in range(0, 30, 6)]
    assert [each is not None for each in made] == [True, False, False, False, True]


def test_backups_of_a_clock_that_was_ahead_cost_no_other(timer: Timer) -> None:
    for day in range(timer.keep):
        timer.round(NOON + (400 + day) * DAY)
    made = timer.round(NOON)
    assert made is not None
    verify_manifest(made.path)
    assert timer.round(NOON + DAY / 2) is None


def test_one_that_fails_costs_no_older_one(timer: Timer, home: Settings) -> None:
    for day in range(3):
        timer.round(NOON + day * DAY)
    before = names(timer)
    (home.state / "mlflow.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(BackupFailed):
        timer.round(NOON + 3 * DAY)
    assert names(timer) == before


def test_only_what_is_ours_and_no_longer_needed_is_removed(timer: Timer, home: Settings, tmp_path: Path) -> None:
    theirs, coming, damaged, strange = (f"line-2026110{day}T000000Z" for day in (1, 2, 3, 4))
    back_up(home, home.state / "mlflow.db", timer.folder / "line-by-hand")
    timer.round(NOON)
    shutil.copytree(timer.folder / "line-20261124T120000Z", timer.folder / theirs)
    manifest = timer.folder / theirs / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(home.home), "/srv/another-line"))
    (timer.folder / coming).mkdir()  # somebody copies it here: its manifest comes last
    (timer.folder / damaged).mkdir()
    (timer.folder / damaged / "manifest.json").write_text('{"home": "/sr')
    (timer.folder / strange).mkdir()
    (timer.folder / strange / "manifest.json").write_text("[]")
    for moment in ("20261120T000000Z", "20261126T000000Z"):  # a kill, and another line that is writing
        (timer.folder / f".line-{moment}.partial").mkdir()
    shutil.copy(manifest, timer.folder / ".line-20261120T000000Z.partial")  # killed before it got its name
    for day in range(1, 4):
        timer.round(NOON + day * DAY)
    assert names(timer) == [
        ".line-20261126T000000Z.partial", theirs, coming, damaged, strange,
        *(f"line-202611{day}T120000Z" for day in (25, 26, 27)), "line-by-hand",
    ]  # fmt: skip


def test_a_removal_that_is_killed_leaves_nothing_that_passes_for_a_backup(
    timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        timer.round(NOON + day * DAY)

    def killed(_: Path, **options: bool) -> None:
        if not options:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(BackupFailed, match="by hand"):
            timer.round(NOON + 3 * DAY)
    assert "line-20261124T120000Z" not in names(timer)
    timer.round(NOON + 4 * DAY)
    assert names(timer) == [f"line-202611{day}T120000Z" for day in (26, 27, 28)]


def test_a_disk_that_is_not_mounted_is_not_written_beside(timer: Timer) -> None:
    timer.folder.rmdir()
    with pytest.raises(BadInput, match="mount its disk"):
        timer.round(NOON)
    assert not timer.folder.exists()


@pytest.mark.parametrize("wrong", [("--every", "0"), ("--every", "24", "--keep", "0"), ("--every", "nan")])
def test_hours_and_numbers_that_make_no_sense_are_refused(home: Settings, tmp_path: Path, wrong: list[str]) -> None:
    assert cli.main(["backup", str(tmp_path), *wrong]) == 2
    assert list(tmp_path.iterdir()) == [home.home]


def test_the_command_goes_on_until_it_is_told_to_stop(timer: Timer, home: Settings) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "backup", str(timer.folder), "--every", "24", "--keep", "2"]
    told = {**os.environ, "VLMOPS_HOME": str(home.home)}
    process = subprocess.Popen(command, cwd=ROOT, env=told, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = next(line for line in process.stderr if str(timer.folder) in line)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    [made] = timer.folder.iterdir()
    assert str(made) in said
    verify_manifest(made)
