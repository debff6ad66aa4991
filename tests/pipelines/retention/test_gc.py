"""What goes and what stays, why, and that nothing else is ever touched."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config_retention import Retention
from pipelines.errors import BadInput, RunConflict
from pipelines.registry import Registry
from pipelines.retention.collect import collect
from pipelines.retention.plan import Known, plan
from pipelines.retention.registered import Version, registered
from pipelines.settings import Settings
from tests.pipelines.finished_run import evaluated_run
from tests.pipelines.retention.conftest import content, in_child
from tests.pipelines.test_registry import register_run

NOW = datetime(2026, 11, 24, tzinfo=UTC)
RULES = Retention(keep_last=1, keep_days=30, open_days=60)


@pytest.fixture
def make(settings: Settings) -> Callable[..., Path]:
    """Makes runs of a given age."""

    def run(name: str, days: float, *, last: str = "register", base: str = "base") -> Path:
        root = settings.runs / name
        model = settings.cache / "bases" / base
        for folder in (root / "download", root / "finetune" / "checkpoints" / "5", root / last, root / "export", model):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "config.json").write_text("{}")
        (root / "download" / "output.json").write_text(json.dumps({"artifact": {"path": str(model)}}))
        (root / "finetune" / "checkpoints" / "5" / "state").write_text("x" * 9000)
        (root / "finetune" / "output.json").write_text(json.dumps({"artifact": {}}))
        (root / "export" / "weights").write_text("x" * 9000)
        (root / last / "output.json").write_text(json.dumps({"artifact": {"outcome": "fail"}}))
        (model / "weights").write_text("x" * 9000)
        age(root, days)
        age(model, days)
        return root

    return run


def age(folder: Path, days: float) -> None:
    moment = (NOW - timedelta(days=days)).timestamp()
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (moment, moment))


def known(settings: Settings, *versions: Version) -> Known:
    return Known(settings, RULES, versions, NOW)


def verdicts(settings: Settings, *versions: Version) -> dict[str, tuple[bool, str]]:
    found = plan(known(settings, *versions))
    return {str(each.item.path.relative_to(settings.home)): (each.goes, each.reason) for each in found}


def goes(settings: Settings, *versions: Version) -> set[str]:
    return {path for path, (gone, _) in verdicts(settings, *versions).items() if gone}


def version(run: Path, *aliases: str, reviewed: bool = True, days: float = 90) -> Version:
    return Version("m", 3, aliases, NOW - timedelta(days=days), reviewed, (run, run / "export"))


@pytest.fixture
def old(make: Callable[..., Path]) -> Path:
    """A run that would go: there is a newer one."""
    make("new", 1, base="base-of-new")
    return make("old", 90)


def test_what_nothing_refers_to_goes_with_all_that_is_in_it(settings: Settings, old: Path) -> None:
    assert goes(settings) == {
        "runs/old",
        "runs/old/finetune/checkpoints",
        "runs/new/finetune/checkpoints",
        "cache/bases/base",
    }
    found = verdicts(settings)
    assert found["runs/new"] == (False, "of the last 1")
    assert found["cache/bases/base-of-new"][0] is False


@pytest.mark.parametrize("alias", ["champion", "approved", "previous", "candidate", "some-other"])
def test_a_version_with_an_alias_keeps_its_run_and_its_base(settings: Settings, old: Path, alias: str) -> None:
    found = verdicts(settings, version(old, alias))
    assert found["runs/old"] == (False, f"{alias}: m v3")
    assert not found["cache/bases/base"][0]
    assert found["runs/old/finetune/checkpoints"][0]


def test_a_version_without_an_alias_keeps_nothing_once_it_is_reviewed(settings: Settings, old: Path) -> None:
    assert "runs/old" in goes(settings, version(old))
    assert "runs/old" in goes(settings, version(old, reviewed=False, days=90))
    assert verdicts(settings, version(old, reviewed=False, days=59))["runs/old"] == (False, "m v3 waits for review")


def test_what_serves_stays_whatever_the_registry_says(settings: Settings, old: Path) -> None:
    settings.serving.mkdir(parents=True)
    for name in ("serving.json", "confirmed.json"):
        (settings.serving / name).write_text(json.dumps({"before": {"model": str(old / "export")}}))
        assert verdicts(settings)["runs/old"] == (False, "it serves, or is the way back")
        (settings.serving / name).unlink()
    assert "runs/old" in goes(settings)


@pytest.mark.parametrize("moved", ["/var/lib/vlmops", "/srv/line/old"])
def test_what_is_referred_to_stays_where_the_home_has_another_name(settings: Settings, old: Path, moved: str) -> None:
    """In a container, behind a mount, after a restore: the registry names paths as whoever wrote them saw them."""
    (old / "exports" / "int4").mkdir(parents=True)
    age(old, 90)
    there = Path(moved, "runs", "old")
    files = (there / "exports" / "int4", Path(moved, "cache", "bases", "base"))
    found = verdicts(settings, Version("m", 3, ("champion",), NOW, True, files))
    assert found["runs/old"] == (False, "champion: m v3")
    assert found["runs/old/exports/int4"] == (False, "a registered version is served from it")
    assert not found["cache/bases/base"][0]
    settings.serving.mkdir(parents=True)
    (settings.serving / "serving.json").write_text(json.dumps({"model": str(there / "export")}))
    assert verdicts(settings)["runs/old"] == (False, "it serves, or is the way back")
    (settings.serving / "serving.json").unlink()
    assert "runs/old" in goes(settings, version(Path(moved, "runs", "older"), "champion"))


def test_a_registry_that_is_not_the_runs_own_says_nothing(settings: Settings, old: Path) -> None:
    """A forgotten address: a server of our own starts, empty, and would have everything deleted."""
    registered_as = {"artifact": {"name": "m", "version": 3}}
    (old / "register" / "output.json").write_text(json.dumps(registered_as))
    age(old, 90)
    for versions in ((), (Version("m", 4, (), NOW, True, ()),), (Version("n", 3, (), NOW, True, ()),)):
        with pytest.raises(BadInput, match=r"m v3 say; name the server .* VLMOPS_MLFLOW_URI"):
            plan(known(settings, *versions))
    assert "runs/old" in goes(settings, version(old))


def test_what_came_into_use_while_gc_looked_is_not_deleted(settings: Settings, old: Path) -> None:
    """Approving takes no lock, and a run that begins takes its base."""
    looks = iter([known(settings, version(old)), known(settings, version(old, "approved"))])
    with pytest.raises(RunConflict, match="an alias moved meanwhile"):
        collect(settings, lambda: next(looks))

    def begins() -> Known:
        (settings.runs / f"begun-{time.time_ns()}").mkdir()
        (sorted(settings.runs.glob("begun-*"))[-1] / "config.json").write_text("{}")
        return known(settings)

    with pytest.raises(RunConflict, match="a run began"):
        collect(settings, begins)
    assert old.is_dir()
    assert not list(settings.home.rglob(".trash"))


def test_a_base_that_only_the_serving_state_names_stays(settings: Settings, old: Path) -> None:
    settings.serving.mkdir(parents=True)
    base = settings.cache / "bases" / "base"
    (settings.serving / "serving.json").write_text(json.dumps({"model": str(base)}))
    assert "cache/bases/base" not in goes(settings)


def test_a_release_keeps_its_run(settings: Settings, old: Path) -> None:
    (old / "release").mkdir()
    age(old, 90)
    assert verdicts(settings)["runs/old"] == (False, "a release was written from it")


def test_a_run_that_has_not_finished_stays_for_a_while(settings: Settings, make: Callable[..., Path]) -> None:
    make("new", 1)
    open_run = make("open", 45, last="export")
    found = verdicts(settings)
    assert found["runs/open"] == (False, "it has not finished, and may go on")
    assert not found["runs/open/finetune/checkpoints"][0]
    age(open_run, 61)
    assert "runs/open" in goes(settings)


def test_a_finished_run_that_is_trained_again_keeps_its_checkpoints(settings: Settings, old: Path) -> None:
    (settings.runs / "new" / "finetune" / "output.json").unlink()  # as the step does before it begins
    found = verdicts(settings)["runs/new/finetune/checkpoints"]
    assert found == (False, "its run has not finished, and would go on from it")


def test_a_refused_run_has_finished(settings: Settings, make: Callable[..., Path]) -> None:
    make("new", 1)
    make("refused", 45, last="gate")
    assert "runs/refused" in goes(settings)


def test_redeploys_do_not_push_out_retrains(settings: Settings, make: Callable[..., Path]) -> None:
    make("retrain", 90)
    for number in range(3):
        (make(f"redeploy-{number}", 40 + number, last="promote") / "target").mkdir()
        age(settings.runs / f"redeploy-{number}", 40 + number)
    assert {path for path in goes(settings) if path.count("/") == 1} == {"runs/redeploy-1", "runs/redeploy-2"}


def test_exports_by_hand_go_when_old_unless_they_serve(settings: Settings, make: Callable[..., Path]) -> None:
    run = make("new", 1)
    for name, days in (("bf16", 40), ("int4", 3), ("served", 40)):
        (run / "exports" / name).mkdir(parents=True)
        age(run / "exports" / name, days)
    served = Version("m", 1, (), NOW, True, (run / "exports" / "served",))
    assert {path for path in goes(settings, served) if "exports" in path} == {"runs/new/exports/bf16"}


def test_a_dry_run_deletes_nothing_and_yes_what_was_said(settings: Settings, old: Path) -> None:
    before = content(settings.home)
    going = goes(settings)
    assert content(settings.home) == before
    freed = collect(settings, lambda: known(settings)).freed
    assert not [path for path in going if (settings.home / path).exists()]
    assert (settings.runs / "new" / "export" / "weights").is_file()
    assert (settings.cache / "bases" / "base-of-new" / "weights").is_file()
    assert freed >= 4 * 9000
    assert not list(settings.home.rglob(".trash"))
    assert goes(settings) == set()


def test_nothing_is_deleted_while_a_step_runs(settings: Settings, old: Path) -> None:
    (settings.runs / "new" / "finetune" / ".lock").touch()
    with (settings.runs / "new" / "finetune" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert verdicts(settings)["runs/new"] == (False, "it is running")
        with pytest.raises(RunConflict, match="new is running"):
            collect(settings, lambda: known(settings))
    assert old.is_dir()
    collect(settings, lambda: known(settings))
    assert not old.exists()


def test_nothing_is_deleted_while_a_promotion_is_under_way(settings: Settings, old: Path) -> None:
    settings.serving.mkdir(parents=True)
    with (settings.serving / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunConflict, match="promotion"):
            collect(settings, lambda: known(settings))
    assert old.is_dir()


def test_links_are_neither_followed_nor_deleted(settings: Settings, old: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "finetune" / "checkpoints").mkdir(parents=True)
    (outside / "config.json").write_text("{}")
    (outside / "precious").write_text("precious")
    age(outside, 400)
    (settings.runs / "linked").symlink_to(outside)
    (settings.cache / "bases" / "linked").symlink_to(outside)
    (old / "inner").symlink_to(outside)
    age(old, 90)
    age(outside, 400)
    collect(settings, lambda: known(settings))
    assert not old.exists()
    assert (outside / "precious").read_text() == "precious"
    assert (settings.runs / "linked").is_symlink()
    assert (settings.cache / "bases" / "linked").is_symlink()


def test_a_shared_cache_is_left_alone(settings: Settings, old: Path, tmp_path: Path) -> None:
    shared = settings.model_copy(update={"cache_dir": tmp_path / "shared"})
    (tmp_path / "shared" / "bases" / "of-another-home").mkdir(parents=True)
    age(tmp_path / "shared", 400)
    assert not [each for each in plan(known(shared)) if each.item.kind == "base"]
    alone = Known(shared, RULES.model_copy(update={"shared_cache": False}), (), NOW)
    assert [each.goes for each in plan(alone) if each.item.kind == "base"] == [True]


def test_folders_that_are_no_runs_are_left_alone(settings: Settings, old: Path) -> None:
    (settings.runs / "notes").mkdir()
    (settings.runs / "notes" / "mine.txt").write_text("mine")
    age(settings.runs / "notes", 400)
    collect(settings, lambda: known(settings))
    assert (settings.runs / "notes" / "mine.txt").is_file()


def test_files_that_go_while_it_looks_are_no_trouble(settings: Settings, old: Path) -> None:
    checkpoints = settings.runs / "new" / "finetune" / "checkpoints"

    def train() -> None:
        while True:
            (checkpoints / "9").mkdir(exist_ok=True)
            (checkpoints / "9" / "state").write_text("x")
            shutil.rmtree(checkpoints / "9")

    training = get_context("fork").Process(target=train)
    training.start()
    try:
        for _ in range(50):
            assert "runs/old" in goes(settings)
    finally:
        training.kill()
        training.join()


def _die_while_removing(settings: Settings) -> None:
    shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    collect(settings, lambda: known(settings))


def test_killed_while_removing_nothing_is_half_there_and_the_next_gc_finishes(settings: Settings, old: Path) -> None:
    assert in_child(_die_while_removing, settings) == -signal.SIGKILL
    assert not old.exists()
    assert list((settings.runs / ".trash").iterdir())
    assert all(path.startswith(("runs/.trash", "cache/bases/.trash")) for path in goes(settings))
    collect(settings, lambda: known(settings))
    assert not list(settings.home.rglob(".trash"))


def test_the_registry_says_what_is_referred_to_and_hears_what_went(tracked: Settings) -> None:
    model = f"gc-{time.time_ns()}"
    runs = [evaluated_run(tracked, name, model) for name in ("one", "two", "three")]
    numbers = [register_run(run) for run in runs]
    registry = Registry(tracked, model)
    registry.reject(numbers[0], reviewer="r", reason="no")
    registry.approve(numbers[1], reviewer="r", reason="yes")
    ours = tuple(each for each in registered(tracked) if each.model == model)
    assert {each.number: (each.aliases, each.reviewed) for each in ours} == {
        numbers[0]: ((), True), numbers[1]: (("approved",), True), numbers[2]: (("candidate",), False),
    }  # fmt: skip
    for run, days in zip(runs, (92, 91, 90), strict=True):
        age(run.root, days)
    collect(tracked, lambda: Known(tracked, RULES, ours, NOW))
    assert [run.root.is_dir() for run in runs] == [False, True, True]
    assert registry.tags(numbers[0])["files"].startswith("deleted by vlmops gc")
    assert "files" not in registry.tags(numbers[1])


def test_the_command_shows_and_deletes_nothing_by_itself(
    tracked: Settings, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("one", 900)
    assert cli.main(["gc"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was deleted" in shown
    assert (run / "finetune" / "checkpoints").is_dir()
    assert cli.main(["gc", "--yes", "--set", "retention.keep_last=0"]) == 2
    assert (run / "finetune" / "checkpoints").is_dir()
    assert cli.main(["gc", "--yes"]) == 0
    assert "were freed" in capsys.readouterr().out
    assert not (run / "finetune" / "checkpoints").exists()
    assert run.is_dir()
