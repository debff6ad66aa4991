"""The way back: all that was there, or nothing changed, and never a half."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipelines.embedded.mlflow_server import mlflow_server
from pipelines.embedded.state import StackState, sole_stack, write_state
from pipelines.errors import BadInput, MachineUnfit
from pipelines.registry import Registry
from pipelines.retention.backup import back_up
from pipelines.retention.last import last_backup
from pipelines.retention.restore import RestoreFailed, restore
from pipelines.settings import Settings
from pipelines.system.manifest import ManifestMismatch
from pipelines.system.processes import start, stop
from tests.pipelines.finished_run import evaluated_run
from tests.pipelines.retention.conftest import content, in_child, with_small_files_only
from tests.pipelines.test_registry import register_run


@pytest.fixture
def backup(home: Settings, tmp_path: Path) -> Path:
    back_up(home, home.state / "mlflow.db", tmp_path / "b")
    return tmp_path / "b"


def put_back(home: Settings, backup: Path, *, force: bool = False) -> None:
    restore(home, backup, home.state / "mlflow.db", force=force)


def lost(home: Settings) -> None:
    shutil.rmtree(home.state)
    shutil.rmtree(home.sealed)


def restored(home: Settings, backup: Path) -> bool:
    """Whether the home holds what the backup does, and nothing of the restore itself is left."""
    noted = home.state / "backup.json"
    held = {name: file for name, file in content(home.home).items() if not name.startswith("before-restore")}
    held.pop(str(noted.relative_to(home.home)), None)
    return held == content(backup / "home")


def test_what_was_lost_is_there_again(home: Settings, backup: Path) -> None:
    made = last_backup(home.home)
    shutil.rmtree(home.home)
    put_back(home, backup)
    assert restored(home, backup)
    assert home.state.stat().st_mode & 0o777 == 0o700
    assert last_backup(home.home) == made


def test_a_backup_that_is_not_whole_changes_nothing(home: Settings, backup: Path) -> None:
    lost(home)
    key = backup / "home" / "state" / "secrets" / "front-keys.json"
    key.write_text(key.read_text().replace("shop", "evil"))
    with pytest.raises(ManifestMismatch, match=r"front-keys\.json"):
        put_back(home, backup)
    (backup / "manifest.json").unlink()
    with pytest.raises(ManifestMismatch, match="never finished"):
        put_back(home, backup)
    assert list(home.home.iterdir()) == []


def test_something_else_with_a_manifest_is_no_backup(home: Settings, backup: Path) -> None:
    lost(home)
    facts = json.loads((backup / "manifest.json").read_text())
    del facts["format"]
    (backup / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(BadInput, match="no backup"):
        put_back(home, backup)


def test_a_home_that_is_in_use_is_refused_and_by_force_put_aside(home: Settings, backup: Path) -> None:
    (home.serving / "deploy.jsonl").write_text("newer\n")
    (home.runs / "survivor").mkdir(parents=True)
    (home.runs / "survivor" / "config.json").write_text("{}")
    before = content(home.home)
    with pytest.raises(BadInput, match="--force"):
        put_back(home, backup)
    assert content(home.home) == before
    put_back(home, backup, force=True)
    assert (home.serving / "deploy.jsonl").read_text() == '{"state": "serving"}\n'
    [aside] = home.home.glob("before-restore-*")
    assert (aside / "state" / "serving" / "deploy.jsonl").read_text() == "newer\n"
    assert (home.runs / "survivor" / "config.json").is_file()


def test_nothing_is_restored_under_a_running_stack(home: Settings, backup: Path) -> None:
    before = content(home.home)
    with sole_stack(home.state):
        state = StackState(pid=os.getpid(), mark="m", airflow_url="a", mlflow_url="m", front_url="f")
        write_state(home.state, state)
        with pytest.raises(BadInput, match="stop it first"):
            put_back(home, backup, force=True)
    assert before.items() <= content(home.home).items()


@pytest.mark.parametrize(
    ("lock", "what"), [("serving/lock", "promotion"), ("backup.lock", "backup"), ("gc.lock", "gc")]
)
def test_nothing_is_restored_under_what_changes_or_reads_the_home(
    home: Settings, backup: Path, lock: str, what: str
) -> None:
    with (home.state / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match=f"a {what} of .* is under way"):
            put_back(home, backup, force=True)


def test_nothing_is_restored_under_an_engine_in_service(home: Settings, backup: Path) -> None:
    engine = start(["sleep", "60"], home.serving / "engines" / "v1-abc.log")
    try:
        with pytest.raises(BadInput, match=f"process {engine.pid}"):
            put_back(home, backup, force=True)
    finally:
        stop(engine.pid)
        engine.wait()


def _killed_at(home: Settings, backup: Path, renames: int) -> None:
    rename, done = Path.rename, 0

    def counted(path: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done > renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = counted  # type: ignore[method-assign,assignment]
    put_back(home, backup, force=True)


@pytest.mark.parametrize("renames", range(4))  # state away, sealed away, sealed in, state in
def test_killed_between_two_renames_the_next_call_finishes(home: Settings, backup: Path, renames: int) -> None:
    (home.serving / "deploy.jsonl").write_text("newer\n")
    assert in_child(_killed_at, home, backup, renames) == -signal.SIGKILL
    assert home.state.exists() == (renames == 0)  # half a home has no state, and passes for a whole one with nobody
    put_back(home, backup)
    assert restored(home, backup)
    [aside] = home.home.glob("before-restore-*")
    assert (aside / "state" / "serving" / "deploy.jsonl").read_text() == "newer\n"


def test_a_state_that_a_stack_made_after_the_kill_is_put_aside_too(home: Settings, backup: Path) -> None:
    (home.serving / "deploy.jsonl").write_text("newer\n")
    assert in_child(_killed_at, home, backup, 2) == -signal.SIGKILL
    home.serving.mkdir(parents=True)
    (home.serving / "deploy.jsonl").write_text("newest\n")
    put_back(home, backup)
    assert restored(home, backup)
    aside = [path / "state" / "serving" / "deploy.jsonl" for path in sorted(home.home.glob("before-restore-*"))]
    assert [path.read_text() for path in aside] == ["newer\n", "newest\n"]


def test_a_rename_that_fails_says_so_and_the_same_command_goes_on(
    home: Settings, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "state" and ".restore" in path.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(RestoreFailed, match=r"half restored: .*cross-device.*same command goes on"):
            put_back(home, backup, force=True)
    assert not home.state.exists()
    put_back(home, backup)
    assert restored(home, backup)


def test_what_would_come_back_to_another_disk_is_refused_before(home: Settings, backup: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == home.home.stat().st_dev:
        pytest.skip("no second disk")
    lost(home)
    with TemporaryDirectory(dir=shared) as other:
        home.sealed.symlink_to(other)
        with pytest.raises(MachineUnfit, match="another disk"):
            put_back(home, backup)
    assert list(home.home.iterdir()) == [home.sealed]


def test_a_link_in_a_backup_is_refused_for_no_manifest_knows_what_is_behind(
    home: Settings, backup: Path, tmp_path: Path
) -> None:
    lost(home)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "evil.json").write_text("{}")
    (backup / "home" / "state" / "secrets" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestMismatch, match="is a link"):
        put_back(home, backup)
    assert list(home.home.iterdir()) == []


def test_a_disk_that_goes_while_it_is_read_is_no_restore(
    home: Settings, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is listed and not there any more: nothing that comes back lacks it silently."""
    before, copied = content(home.home), shutil.copyfile

    def unmounted(source: Path, target: Path) -> object:
        if Path(source).name == "mlflow.db":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", unmounted)
    with pytest.raises(RestoreFailed, match="nothing there was changed"):
        put_back(home, backup, force=True)
    assert content(home.home) == before


def test_nothing_is_restored_under_a_step(home: Settings, backup: Path) -> None:
    (home.runs / "one" / "finetune").mkdir(parents=True)
    (home.runs / "one" / "config.json").write_text("{}")
    with (home.runs / "one" / "finetune" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match=r"one of .* is running"):
            put_back(home, backup, force=True)


def test_an_interrupted_restore_of_another_backup_is_finished_first(
    home: Settings, backup: Path, tmp_path: Path
) -> None:
    assert in_child(_killed_at, home, backup, 1) == -signal.SIGKILL
    other = tmp_path / "other"
    shutil.copytree(backup, other)
    with pytest.raises(BadInput, match="not empty"):
        put_back(home, other)
    assert restored(home, backup)


def test_files_of_mlflow_that_lie_elsewhere_come_back_there(home: Settings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "volume"
    (elsewhere / "7" / "run").mkdir(parents=True)
    (elsewhere / "7" / "run" / "report.html").write_text("a report")
    back_up(home, home.state / "mlflow.db", tmp_path / "b", artifacts=elsewhere)
    shutil.rmtree(home.home)
    shutil.rmtree(elsewhere)
    with pytest.raises(BadInput, match="mlflow_artifacts"):
        put_back(home, tmp_path / "b")
    restore(home, tmp_path / "b", home.state / "mlflow.db", artifacts=elsewhere)
    assert (elsewhere / "7" / "run" / "report.html").read_text() == "a report"
    assert (home.serving / "deploy.jsonl").is_file()


def test_a_folder_of_mlflow_that_was_empty_is_restored_with_the_same_settings(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    back_up(home, home.state / "mlflow.db", tmp_path / "b", artifacts=tmp_path / "volume")
    shutil.rmtree(home.home)
    restore(home, tmp_path / "b", home.state / "mlflow.db", artifacts=tmp_path / "volume")
    assert (home.serving / "deploy.jsonl").is_file()


def test_a_disk_that_fills_up_changes_nothing(home: Settings, backup: Path) -> None:
    before = content(home.home)
    assert in_child(with_small_files_only, lambda: put_back(home, backup, force=True)) == 7
    assert content(home.home) == before


def test_the_registry_answers_the_same_after_a_loss(
    tracked: Settings, mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drill: back up under a running MLflow, lose everything, restore, start MLflow, ask it."""
    model = "drill"
    numbers = [register_run(evaluated_run(tracked, name, model)) for name in ("one", "two")]
    registry = Registry(tracked, model)
    for number in numbers:
        registry.approve(number, reviewer="r", reason="drill")
        registry.confirm(number)
    version = registry.version(numbers[1])
    before = (registry.aliases(), [registry.tags(number) for number in numbers], version)
    answers = registry.report(version, tmp_path / "before").model_dump(exclude={"evaluations", "golden"})
    source = Settings(home=mlflow_home)
    back_up(source, source.state / "mlflow.db", tmp_path / "b")
    registry.approve(numbers[0], reviewer="r", reason="after the backup")
    new = Settings(home=tmp_path / "new")
    restore(new, tmp_path / "b", new.state / "mlflow.db")
    with mlflow_server(new.model_copy(update={"mlflow_uri": None})) as uri:
        again = Registry(new.model_copy(update={"mlflow_uri": uri}), model)
        assert (again.aliases(), [again.tags(number) for number in numbers], again.version(numbers[1])) == before
        found = again.report(version, tmp_path / "after").model_dump(exclude={"evaluations", "golden"})
    assert found == answers
