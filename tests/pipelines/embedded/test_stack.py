"""The embedded stack, really started: real Airflow and MLflow, with steps, front and engine played by fake_python."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines import line
from pipelines.config_file import load_config
from pipelines.dag_runs import run_root
from pipelines.embedded import components
from pipelines.embedded import state as stack_state
from pipelines.embedded.airflow_api import FINAL, Airflow, AirflowRefused, Review, wait_for
from pipelines.embedded.components import ADMIN
from pipelines.embedded.mlflow_server import mlflow_server
from pipelines.embedded.parts import PartFailed, Parts
from pipelines.embedded.stack import Stack, dags_loaded, served_again
from pipelines.embedded.state import StackState
from pipelines.errors import MachineUnfit
from pipelines.launch import environment
from pipelines.registry import Registry
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import PROMOTE
from pipelines.system.processes import free_port, require_free_port
from pipelines.tracking import client
from tests import fake_python

CHILD = """
import sys
from pipelines.settings import Settings
from pipelines.embedded.stack import run_stack
sys.exit(run_stack(Settings()))
"""


@dataclass
class Running:
    """A stack in a process of its own."""

    settings: Settings
    process: subprocess.Popen[bytes]
    state: StackState
    seconds: float

    def login(self, user: str) -> Airflow:
        return Airflow(self.state.airflow_url, user, components.password(self.settings, user))

    def family(self) -> list[psutil.Process]:
        return stack_state.marked_processes(self.state.mark)


def launch(settings: Settings) -> Running:
    log = settings.home.parent / "launcher.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD], env=environment(settings), stdout=output, stderr=subprocess.STDOUT
        )

    def ready() -> bool | None:
        assert process.poll() is None, log.read_text()
        return "ready in" in log.read_text() or None

    wait_for(ready, 180, "the stack to be ready")
    state = stack_state.read_state(settings.state)
    assert state is not None
    return Running(settings, process, state, time.monotonic() - began)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("stack")
    python = fake_python.install(folder)
    ports = {name: free_port() for name in Settings.model_fields if name.endswith("_port")}
    home = folder / "home"
    fake_python.plan(home, real=["register", "target"])
    (data := folder / "data").mkdir()
    (data / "old.png").touch()
    watched = {"data_watch": str(data), "data_watch_minimum": 2, "data_poll_seconds": 0.5}
    return Settings(home=home, ml_python=python, core_python=python, registry_poll_seconds=1, **watched, **ports)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Running]:
    running = launch(settings)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


def finish(stack: Running, dag_id: str, run_id: str) -> Run:
    with stack.login(ADMIN) as airflow:
        end = wait_for(lambda: s if (s := airflow.run_state(dag_id, run_id)) in FINAL else None, 90, f"{dag_id} to end")
    assert end == "success"
    return Run(run_root(dag_id, run_id, stack.settings))


@pytest.fixture(scope="module")
def candidate(stack: Running) -> Run:
    """A run that registered version 1."""
    with stack.login(ADMIN) as airflow:
        return finish(stack, "retrain", airflow.trigger("retrain", {"reason": "a test"}))


def answer(stack: Running, run_id: str, option: str, reason: str) -> Review:
    with stack.login(stack.settings.reviewer) as person:
        review = person.answer_when_settled("review", run_id, option, reason)
    finish(stack, "review", run_id)
    return review


def test_airflow_is_whole_and_lets_no_stranger_in(stack: Running) -> None:
    with stack.login(ADMIN) as airflow:
        assert set(airflow.health().values()) == {"healthy"}
        assert airflow.dags() == {"retrain", "review", "redeploy", "monitor"}
        assert airflow.import_errors() == []
    assert httpx.get(f"{stack.state.airflow_url}/api/v2/dags").status_code == httpx.codes.UNAUTHORIZED


def test_somebody_looks_after_what_serves(stack: Running) -> None:
    [watch] = [process for process in stack.family() if process.cmdline()[-2:] == ["-m", "serving.watch"]]
    assert watch.environ()["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"  # it must not hang where MLflow is away


def test_every_listener_is_on_loopback(stack: Running) -> None:
    family = {process.pid for process in stack.family()}
    listening = [c for c in psutil.net_connections() if c.pid in family and c.status == psutil.CONN_LISTEN]
    urls = (stack.state.airflow_url, stack.state.mlflow_url, stack.state.front_url)
    assert {c.laddr.port for c in listening} >= {int(url.rpartition(":")[2]) for url in urls}
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_secrets_are_for_their_owner_only_and_in_no_argument_list(stack: Running) -> None:
    folder = stack.settings.state / "secrets"
    files = list(folder.iterdir())
    assert len(files) >= 6
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert oct(stack.settings.state.stat().st_mode & 0o777) == oct(folder.stat().st_mode & 0o777) == "0o700"
    secrets = [path.read_text() for path in files if path.suffix != ".json"]
    spoken = [" ".join(process.cmdline()) for process in stack.family()]
    spoken += [log.read_text() for log in (stack.settings.state / "logs").iterdir()]
    assert not [secret for secret in secrets for text in spoken if secret in text]


def test_a_second_launcher_is_refused_and_names_the_first(stack: Running) -> None:
    with pytest.raises(MachineUnfit, match=str(stack.process.pid)), stack_state.sole_stack(stack.settings.state):
        pass


def test_a_command_beside_the_stack_uses_its_mlflow(stack: Running) -> None:
    with mlflow_server(stack.settings) as url:
        assert url == stack.state.mlflow_url


def test_a_rejection_is_on_the_version_and_nothing_is_deployed(stack: Running, candidate: Run) -> None:
    with stack.login(ADMIN) as airflow:
        (run_id,) = wait_for(lambda: airflow.runs("review", _long_ago()) or None, 60, "the Asset to start a review")
    review = answer(stack, run_id, "Reject", "reads ones as sevens")
    assert "digits: 37 to 95 of 100" in review.body
    with stack.login(ADMIN) as airflow:
        (event,) = airflow.upstream_events("review", run_id)
    assert event["extra"]["run"] == candidate.name
    registry = _registry(stack)
    tags = registry.tags(1)
    assert (tags["review"], tags["reviewer"], tags["review_reason"]) == ("rejected", "reviewer", "reads ones as sevens")
    assert registry.aliases() == {"candidate": 1}
    with stack.login(ADMIN) as airflow:
        assert airflow.runs("redeploy", _long_ago()) == []


def test_an_approval_by_the_reviewer_alone_redeploys(stack: Running, candidate: Run) -> None:
    with stack.login(ADMIN) as airflow:
        run_id = airflow.trigger("review", {"run": candidate.name})
        waiting = wait_for(lambda: airflow.waiting_review("review", run_id), 60, "a request for review")
        with pytest.raises(AirflowRefused, match="not a respondent"):
            airflow.answer(waiting, "Approve", "I am not the reviewer")
        answer(stack, run_id, "Approve", "better")
        (redeploy,) = wait_for(lambda: airflow.runs("redeploy", _long_ago()) or None, 60, "the alias to start redeploy")
    assert finish(stack, "redeploy", redeploy).read(PROMOTE).version == 1
    assert _registry(stack).aliases() == {"candidate": 1, "approved": 1, "serving": 1, "champion": 1}


def wait_started(stack: Running, dag_id: str, before: list[str]) -> Run:
    """The run of a Dag that something else than we started, when it has ended."""
    with stack.login(ADMIN) as airflow:
        (run_id,) = wait_for(
            lambda: [run for run in airflow.runs(dag_id, _long_ago()) if run not in before] or None, 60, dag_id
        )
    return finish(stack, dag_id, run_id)


def runs(stack: Running, dag_id: str) -> list[str]:
    with stack.login(ADMIN) as airflow:
        return airflow.runs(dag_id, _long_ago())


def test_new_data_and_a_request_of_the_monitor_start_a_retrain_that_knows_why(stack: Running, candidate: Run) -> None:
    before = runs(stack, "retrain")
    folder = Path(str(stack.settings.data_watch))
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    by_data = wait_started(stack, "retrain", before)
    assert by_data.asked() == {"trigger": "data", "reason": f"2 new files in {folder}"}
    before = runs(stack, "retrain")
    with stack.login(ADMIN) as airflow:
        (asset,) = airflow._call("GET", "/api/v2/assets", params={"name_pattern": "retrain_requested"})["assets"]
        body = {"asset_id": asset["id"], "extra": {"reason": "images are darker than in training"}}
        airflow._call("POST", "/api/v2/assets/events", body)
    by_monitor = wait_started(stack, "retrain", before)
    assert by_monitor.asked() == {"trigger": "monitoring", "reason": "images are darker than in training"}
    tracked = json.loads((by_monitor.root / "mlflow.json").read_text())["run_id"]
    tags = client(stack.settings.model_copy(update={"mlflow_uri": stack.state.mlflow_url})).get_run(tracked).data.tags
    assert (tags["vlmops.trigger"], tags["vlmops.reason"]) == ("monitoring", "images are darker than in training")


def test_an_alias_moved_back_in_mlflow_and_a_rollback_do_the_same(stack: Running, candidate: Run) -> None:
    settings = stack.settings.model_copy(update={"mlflow_uri": stack.state.mlflow_url})
    registry, mlflow = _registry(stack), client(settings)
    assert registry.aliases()["champion"] == 1

    def serving_after(move: Callable[[], object]) -> tuple[int, int]:
        before = runs(stack, "redeploy")
        move()
        wait_started(stack, "redeploy", before)
        aliases = registry.aliases()
        return aliases["champion"], aliases["previous"]

    def moved_to(version: int) -> tuple[int, int]:
        return serving_after(lambda: mlflow.set_registered_model_alias("digits", "approved", str(version)))

    assert moved_to(2) == (2, 1)
    assert moved_to(1) == (1, 2)
    assert moved_to(2) == (2, 1)
    smoke = load_config(stack.settings.config)
    assert serving_after(lambda: line.rollback(smoke, "reads ones as sevens", settings)) == (1, 2)
    assert registry.tags(1)["review_reason"] == "reads ones as sevens"


def test_what_a_killed_launcher_left_is_ended_by_the_next_which_stops_cleanly_in_the_middle_of_a_step(
    stack: Running, candidate: Run
) -> None:
    deployed = len(runs(stack, "redeploy"))
    orphans = stack.family()
    os.kill(stack.process.pid, signal.SIGKILL)
    stack.process.wait()
    assert len(orphans) >= 6 + 3  # the parts, and those that Airflow and MLflow start themselves
    assert [p for p in orphans if p.is_running()]
    fake_python.plan(stack.settings.home, sleeps="finetune")
    again = launch(stack.settings)

    def redeployed() -> bool | None:
        assert again.process.poll() is None, (again.settings.home.parent / "launcher.log").read_text()
        return len(airflow.runs("redeploy", _long_ago())) == deployed + 1 or None

    try:
        assert not any(map(_runs, orphans))
        with again.login(ADMIN) as airflow:
            # The alias has not moved, but what it names must serve again: one run more for the restart.
            wait_for(redeployed, 60, "a redeploy")
            run_id = airflow.trigger("retrain", {})
        sleeping = run_root("retrain", run_id, again.settings) / "sleeping"
        wait_for(lambda: sleeping.is_file() or None, 60, "a step to run")
        family = again.family()
        assert int(sleeping.read_text()) in {p.pid for p in family}
    finally:
        again.process.terminate()
        code = again.process.wait(60)
    assert code == 0
    assert not any(map(_runs, family))
    assert again.family() == []
    assert (again.settings.home / "service-stop").is_file()
    require_free_port(again.settings.front_port, "the front")


def test_a_redeploy_that_cannot_be_asked_for_is_told_and_ends_no_stack(tmp_path: Path) -> None:
    stack = Stack(Settings(home=tmp_path, mlflow_uri=f"http://127.0.0.1:{free_port()}"))
    assert re.search("not put back into service: MLflow .* trigger the Dag redeploy", served_again(stack))


def test_the_death_of_a_part_is_told_with_its_log(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {})
    parts.start("steady", ["sleep", "60"])
    parts.start("frail", ["sh", "-c", "echo disk full >&2; exit 7"])
    with pytest.raises(PartFailed, match=r"frail ended with exit code 7:\ndisk full"):
        parts.wait(lambda: False, 10, "nothing")
    parts.stop(5)


def test_a_dag_that_cannot_be_loaded_is_told_at_once() -> None:
    class Broken(Airflow):
        def import_errors(self) -> list[str]:
            return ["SyntaxError: retrain.py, line 3"]

    with pytest.raises(PartFailed, match="1 Dag files cannot be loaded"):
        dags_loaded(Broken("http://nowhere", ADMIN, ""))


def test_a_taken_port_is_told_before_anything_starts(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mine = settings.model_copy(update={"home": tmp_path, "front_port": port})
        with pytest.raises(MachineUnfit, match=f"port {port} .*VLMOPS_FRONT_PORT"), Stack(mine):
            pass
    assert not (mine.state / "logs").exists()


def _registry(stack: Running) -> Registry:
    return Registry(stack.settings.model_copy(update={"mlflow_uri": stack.state.mlflow_url}), "digits")


def _long_ago() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def _runs(process: psutil.Process) -> bool:
    """An ended process that nobody has reaped yet does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
