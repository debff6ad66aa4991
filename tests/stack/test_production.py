"""PostgreSQL, Redis, Celery workers: the retrain Dag as it is, and what it survives."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from pipelines.embedded.airflow_api import FINAL, Airflow, AirflowRefused
from pipelines.registry import Registry
from pipelines.run import Run, runs_below
from pipelines.settings import Settings
from pipelines.steps import FINETUNE, GATE, REGISTER, RETRAIN
from tests.stack.production import Production
from tests.stack.small_line import STEPS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
T = TypeVar("T")


def seen(look: Callable[[], T], seconds: float, what: str) -> T:
    """What a look finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


def checkpoints(run: Run) -> list[Path]:
    return sorted(run.folder(FINETUNE).glob("checkpoints/checkpoint-*"))


def finetuning(home: Path) -> Run | None:
    """The one run, once its fine-tuning has left a checkpoint."""
    return next((run for run in runs_below(home / "runs") if checkpoints(run)), None)


def events(logs: Path, attempt: int) -> list[str]:
    """What the log of an attempt says, a line each."""
    lines = [line for path in logs.rglob(f"attempt={attempt}.log") for line in path.read_text().splitlines()]
    return [str(json.loads(line)["event"]) for line in lines]


def state(airflow: Airflow, run_id: str) -> str | None:
    found = airflow.run_state("retrain", run_id)
    return found if found in FINAL else None


def test_a_run_outlives_its_worker_and_a_restart_of_the_database(production: Production, home: Path) -> None:
    with production.login("admin") as airflow:
        run_id = airflow.trigger("retrain", {"reason": "a test"})
        run = seen(lambda: finetuning(home), 300, "a checkpoint")
        orphan = psutil.Process(seen(lambda: run.claimant(FINETUNE), 5, "the step's process"))
        orphan.suspend()  # a step that writes ends by itself when nobody reads; this one is to live on
        production.kill("worker-gpu")
        production.restart_postgres()
        logs = production.folder / "airflow" / "logs"
        seen(lambda: [event for event in events(logs, 2) if f"ending process {orphan.pid}:" in event], 150, "a retry")
        orphan.resume()

        ended = seen(lambda: state(airflow, run_id), 300, "the end of the run")
        tries = {task.task_id: task.try_number for task in airflow.tasks("retrain", run_id)}
        assert (ended, tries) == (
            "success",
            dict.fromkeys(["open_run", *(s.name for s in RETRAIN)], 1) | {"finetune": 2},
        )
    assert not orphan.is_running()
    assert run.read(FINETUNE).steps == STEPS
    assert run.read(GATE).outcome == "pass"
    assert run.read(REGISTER).version == 1
    told = events(logs, attempt=2)
    assert [event for event in told if re.search(r"resuming from checkpoint-\d+", event)], told
    assert production.log("postgres").count("database system is ready to accept connections") == 2


def test_the_reviewer_alone_is_asked_and_the_answer_is_in_the_registry(production: Production, home: Path) -> None:
    """After the run above: its candidate waits. FAB knows respondents by number."""
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    with production.login("admin") as admin, production.login("reviewer") as reviewer:
        (review,) = seen(lambda: admin.runs("review", long_ago), 60, "the Asset to start a review")
        waiting = seen(lambda: admin.waiting_review("review", review), 60, "a request for review")
        with pytest.raises(AirflowRefused, match="not a respondent"):
            admin.answer(waiting, "Approve", "I am not the reviewer")
        reviewer.answer_when_settled("review", review, "Approve", "better")
        seen(lambda: admin.run_state("review", review) == "success", 60, "the end of the review")
    registry = Registry(Settings(home=home, mlflow_uri=production.mlflow_url), "digits")
    assert registry.aliases() == {"candidate": 1, "approved": 1}
    assert (registry.tags(1)["reviewer"], registry.tags(1)["review_reason"]) == ("reviewer", "better")
