"""The demo's story, with played steps: once through a real Airflow and MLflow, and where it must say that it failed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from pipelines import dag_runs
from pipelines.demo import story
from pipelines.demo.screen import Screen
from pipelines.demo.story import DemoFailed, Story, clear, demo_settings, run_demo
from pipelines.embedded import mlflow_server
from pipelines.embedded import state as stack_state
from pipelines.embedded.airflow_api import Airflow, Review, TaskState
from pipelines.embedded.stack import Stack, stay
from pipelines.errors import MachineUnfit
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import REDEPLOY, RETRAIN
from tests import fake_python


def test_the_whole_story_stays_up_until_ctrl_c_and_ends_with_everything_stopped(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_python.install(tmp_path)
    settings = settings.model_copy(update={"ml_python": python, "core_python": python})
    home = demo_settings(settings)
    home.runs.mkdir(parents=True)
    (home.runs / "old").touch()  # of an earlier demo
    fake_python.plan(home.home, real=["register", "target"])
    before = psutil.Process().children()
    up = []

    def look_and_press_ctrl_c(stack: Stack) -> None:
        up.append(mlflow_server.answers(stack.mlflow_url))
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        stay(stack)

    monkeypatch.setattr(story, "stay", look_and_press_ctrl_c)
    assert run_demo(settings, keep=True) == 0
    assert up == [True]
    shown = capsys.readouterr().out
    for words in (
        "the demo itself approves, through Airflow's REST API, as the user reviewer",
        "refused, as it must be: it forgets colours",
        "approved = 1, candidate = 1, champion = 1",
        "37.0% (32.0% to 42.0%)",
        "base without the adapter",
        "5.10e-03",
        "answer: seven",
        "log in as reviewer or admin, passwords in",
        "everything stays up until Ctrl-C",
        "everything is stopped",
    ):
        assert words in shown
    state = stack_state.read_state(home.state)
    assert state is not None
    assert stack_state.marked_processes(state.mark) == []
    assert not (home.runs / "old").exists()
    assert psutil.Process().children() == before


class PlayedAirflow(Airflow):
    """Runs every Dag at once, when it is triggered."""

    def __init__(self, settings: Settings, *, gates: list[str]) -> None:
        super().__init__("http://nowhere", "admin", "")
        self.settings, self.gates = settings, gates

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        return self.play(dag_id, f"{dag_id}{len(self.gates)}", conf)

    def runs(self, dag_id: str, since: datetime) -> list[str]:
        return [self.play("redeploy", "r", {}) if dag_id == "redeploy" else "review1"]

    def play(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> str:
        run = Run(Path(dag_runs.open_run(dag_id, run_id, conf, self.settings)))
        gate = self.gates.pop(0) if dag_id == "retrain" else "pass"
        for step in RETRAIN if dag_id == "retrain" else REDEPLOY:
            run.folder(step).mkdir(exist_ok=True)
            artifact = fake_python.artifacts(run, gate)[step.name]
            run.write(step, artifact, seconds=1, peak_gib=1)
            if not artifact.proceed:
                break
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        return "success"

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        return [TaskState("open_run", "success", 1.0, 1)]

    def answer_when_settled(self, dag_id: str, run_id: str, option: str, reason: str, seconds: float = 120) -> Review:
        return Review(dag_id, run_id, "person", -1, 1, "awaiting_input", "Serve?", "")


def tell(settings: Settings, gates: list[str]) -> None:
    airflow = PlayedAirflow(settings, gates=gates)
    stack = SimpleNamespace(settings=settings, login=lambda _: airflow, check=lambda: None)
    Story(stack, airflow, Screen(Console(quiet=True))).tell()  # type: ignore[arg-type]


def test_a_gate_that_lets_the_forgetful_candidate_pass_fails_the_demo(settings: Settings) -> None:
    with pytest.raises(DemoFailed, match="let the forgetful candidate pass"):
        tell(settings, ["pass", "pass"])


def test_a_gate_that_refuses_the_first_candidate_fails_the_demo(settings: Settings) -> None:
    with pytest.raises(DemoFailed, match="refused the first candidate: colours"):
        tell(settings, ["fail"])


def test_a_running_demo_is_not_cleared_away(settings: Settings) -> None:
    home = demo_settings(settings)
    with stack_state.sole_stack(home.state), pytest.raises(MachineUnfit, match="is running"):
        clear(home)


def test_a_new_demo_may_look_at_its_test_items_again(settings: Settings) -> None:
    home = demo_settings(settings)
    home.sealed.mkdir(parents=True)
    (home.sealed / "spent.jsonl").touch()
    home.state.mkdir()
    clear(home)
    assert not home.sealed.exists()


def test_the_cache_of_base_models_is_shared_and_everything_else_is_the_demos_own(settings: Settings) -> None:
    home = demo_settings(settings)
    assert home.cache == settings.cache
    assert home.home == settings.home / "demo"
    ports = {home.front_port, home.engine_port, home.ready_port, home.keys_port}
    assert len(ports) == 4
    assert settings.front_port not in ports


def test_a_line_is_printed_for_each_change_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(Console())
    with screen.dag_run("retrain"):
        screen.show([TaskState("gate", None, None, 0), TaskState("download", "running", 1.0, 1)])
        screen.show([TaskState("gate", None, None, 0), TaskState("download", "running", 2.0, 1)])
        screen.show([TaskState("gate", "queued", None, 0), TaskState("download", "success", 2.5, 1)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["retrain download running", "retrain download success 2.5 s", "retrain gate queued"]


def test_a_terminal_gets_one_table_that_stays(settings: Settings) -> None:
    console = Console(force_terminal=True, record=True, width=80)
    screen = Screen(console)
    with screen.dag_run("retrain"):
        screen.show([TaskState("gate", "success", 2.0, 1), TaskState("download", "success", 1.0, 1)])
    text = console.export_text()
    assert text.rindex("download") < text.rindex("gate")
