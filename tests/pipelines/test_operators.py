"""One step as an Airflow task: what its exit code becomes, how it is stopped, what a failure leaves behind."""

from __future__ import annotations

from tests import airflow_home  # noqa: F401  # isort: skip  before airflow is imported

import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from pipelines import operators
from pipelines.config import Config
from pipelines.dag_runs import run_root
from pipelines.errors import BadInput, StepFailed, Unreachable
from pipelines.launch import command
from pipelines.operators import BY_AIRFLOW, StepOperator, bad_input_is_final, leave_reason
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, EVALUATE, EXPORT, FINETUNE, GATE, PROMOTE, REGISTER, RETRAIN, TARGET
from tests import fake_python


@pytest.fixture
def machine(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    python = fake_python.install(tmp_path)
    monkeypatch.setenv("VLMOPS_ML_PYTHON", python)
    monkeypatch.setenv("VLMOPS_CORE_PYTHON", python)
    return settings


@pytest.fixture
def run(machine: Settings, smoke: Config) -> Run:
    return Run.create(machine.runs / "one", smoke)


class Pushed(SimpleNamespace):
    """A task instance that remembers what was pushed."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed = {key: value}


def test_a_finished_step_returns_its_artifact(run: Run) -> None:
    facts = StepOperator(step=DOWNLOAD, run_dir=str(run.root)).execute({})
    assert facts == run.read(DOWNLOAD).model_dump(mode="json")


def test_airflow_runs_a_finished_step_again(run: Run) -> None:
    for _ in range(2):
        StepOperator(step=DOWNLOAD, run_dir=str(run.root)).execute({})
    assert len(list(run.root.glob("download.attempt*"))) == 2


def test_a_task_that_is_cleared_does_not_write_over_a_registered_version(run: Run) -> None:
    for step in RETRAIN:
        StepOperator(step=step, run_dir=str(run.root)).execute({})
    before = run.record(EXPORT)
    for step in (FINETUNE, EXPORT, EVALUATE):
        with pytest.raises(AirflowFailException, match=r"digits version 1 is made of the files of one.*a new run"):
            StepOperator(step=step, run_dir=str(run.root)).execute({})
        assert len(list(run.root.glob(f"{step.name}.attempt*"))) == 1
    assert run.record(EXPORT) == before
    assert StepOperator(step=REGISTER, run_dir=str(run.root)).execute({})["version"] == 1  # finds what it made


def test_a_gate_that_refuses_skips_the_rest_and_hands_on_its_reasons(machine: Settings, run: Run) -> None:
    fake_python.plan(machine.home, gate="fail")
    for step in GATE.needs[0].needs:
        for need in (*step.needs, step):
            StepOperator(step=need, run_dir=str(run.root)).execute({})
    StepOperator(step=GATE.needs[0], run_dir=str(run.root)).execute({})
    ti = Pushed()
    with pytest.raises(DownstreamTasksSkipped):
        StepOperator(step=GATE, run_dir=str(run.root)).execute({"ti": ti})
    assert ti.pushed["return_value"]["outcome"] == "fail"


def test_bad_input_is_not_tried_again_and_says_why(machine: Settings, run: Run) -> None:
    fake_python.plan(machine.home, fail={"download": [2]})
    with pytest.raises(AirflowFailException, match="download: BadInput: told to fail"):
        StepOperator(step=DOWNLOAD, run_dir=str(run.root)).execute({})


@pytest.mark.parametrize("code", [1, 137])
def test_any_other_failure_is_tried_again(machine: Settings, run: Run, code: int) -> None:
    fake_python.plan(machine.home, fail={"download": [code, 0]})
    operator = StepOperator(step=DOWNLOAD, run_dir=str(run.root))
    with pytest.raises(StepFailed) as failure:
        operator.execute({})
    assert not isinstance(failure.value, AirflowFailException)
    assert operator.execute({})["source"] == "builtin://x"


def test_a_promotion_that_was_undone_is_not_tried_again(machine: Settings, run: Run) -> None:
    fake_python.plan(machine.home, fail={"promote": [1]}, undone=True)
    StepOperator(step=TARGET, run_dir=str(run.root)).execute({})
    with pytest.raises(AirflowFailException, match="promote: PromotionFailed"):
        StepOperator(step=PROMOTE, run_dir=str(run.root)).execute({})


def test_a_killed_task_leaves_no_process_of_its_step(machine: Settings, run: Run) -> None:
    fake_python.plan(machine.home, sleeps="download")
    operator = StepOperator(step=DOWNLOAD, run_dir=str(run.root))
    outcome: list[BaseException] = []

    def attempt() -> None:
        try:
            operator.execute({})
        except StepFailed as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    sleeping = run.root / "sleeping"
    while not (sleeping.is_file() and sleeping.read_text()):
        time.sleep(0.05)
    operator.on_kill()
    thread.join(10)
    assert outcome
    assert not psutil.pid_exists(int(sleeping.read_text()))


def left_behind(machine: Settings, run: Run, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A step that runs while nobody watches it."""
    fake_python.plan(machine.home, sleeps="download")
    step = command(DOWNLOAD, run.root, Settings(), again=True)
    process = subprocess.Popen(step, env={**os.environ, **environment}, start_new_session=True)
    while run.claimant(DOWNLOAD) is None and process.poll() is None:
        time.sleep(0.05)
    fake_python.plan(machine.home)
    return process


def test_a_retry_ends_what_a_killed_attempt_left_behind(machine: Settings, run: Run) -> None:
    orphan = left_behind(machine, run, {BY_AIRFLOW: run.name})
    assert StepOperator(step=DOWNLOAD, run_dir=str(run.root)).execute({})["source"] == "builtin://x"
    assert orphan.wait(10) == -signal.SIGTERM
    assert run.claimant(DOWNLOAD) is None


@pytest.mark.parametrize("environment", [{}, {BY_AIRFLOW: "another-run"}], ids=["a person", "another run"])
def test_a_step_of_somebody_else_is_left_alone(machine: Settings, run: Run, environment: dict[str, str]) -> None:
    """Also what only has the number of a process that runs on another machine."""
    theirs = left_behind(machine, run, environment)
    try:
        StepOperator(step=DOWNLOAD, run_dir=str(run.root)).execute({})
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


def test_only_gpu_steps_take_the_pool_and_the_queue(tmp_path: Path) -> None:
    card, none = (StepOperator(step=step, run_dir=str(tmp_path)) for step in (FINETUNE, DOWNLOAD))
    assert (card.pool, card.queue) == ("gpu", "gpu")
    assert (none.pool, none.queue) == ("default_pool", "default")


def test_wrong_input_of_a_small_task_is_final() -> None:
    with pytest.raises(AirflowFailException, match="no such thing"), bad_input_is_final():
        raise BadInput("no such thing")


def test_a_failure_leaves_its_reason_in_the_log_and_in_mlflow(
    machine: Settings, smoke: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted: list[tuple[str, str, str]] = []
    note = lambda run, step, why, _: noted.append((run.name, step, why))  # noqa: E731
    monkeypatch.setattr(operators.tracking, "note_failure", note)
    run = Run.create(run_root("retrain", "r1", machine), smoke)
    run.folder(DOWNLOAD).mkdir()
    run.write_failure(DOWNLOAD, BadInput("a pickle"))
    leave_reason({"ti": SimpleNamespace(task_id="download", dag_id="retrain", run_id="r1"), "exception": BadInput("x")})
    assert noted == [("retrain-r1", "download", "BadInput: a pickle")]
    assert "download of r1 failed" in caplog.text


def test_a_failure_is_logged_when_mlflow_is_away(
    machine: Settings, smoke: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise Unreachable("MLflow", "http://127.0.0.1:1", "refused")

    monkeypatch.setattr(operators.tracking, "note_failure", away)
    Run.create(run_root("retrain", "r1", machine), smoke)
    with caplog.at_level(logging.WARNING):
        leave_reason({"ti": SimpleNamespace(task_id="download", dag_id="retrain", run_id="r1"), "exception": None})
    assert "not in MLflow: MLflow at http://127.0.0.1:1" in caplog.text
