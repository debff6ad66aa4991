"""The Airflow side of a step: start it, show its output, hand its result on, and say why it failed."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from pipelines import tracking
from pipelines.dag_runs import run_root
from pipelines.errors import BAD_INPUT, DONE, FAILED, REJECTED, BadInput, PromotionFailed, StepFailed, Unreachable
from pipelines.launch import command, step_environment
from pipelines.pod_commands import executor_config
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import REGISTER, RETRAIN, STEPS, Step
from pipelines.system import processes

log = logging.getLogger(__name__)

BY_AIRFLOW = "VLMOPS_BY_AIRFLOW"
"""Environment variable of the processes that a task starts: what carries it, no person at a command line started."""

ORPHAN_GRACE_SECONDS = 60
"""For a step that lost its task to end by itself: a promotion takes back what it has begun."""

KILL_GRACE_SECONDS = 4
"""Airflow kills a task 5 s after it asked it to stop; the step's process group must be gone before."""


class StepOperator(BaseOperator):
    """Run one pipeline step in its own environment and return its result.

    A step that finishes and asks to stop succeeds here and skips what comes after it.

    :param step: the step to run.
    :param run_dir: the run it belongs to. (templated)
    """

    template_fields: Sequence[str] = ("run_dir",)

    def __init__(self, *, step: Step[Any], run_dir: str, **kwargs: Any) -> None:
        kwargs.setdefault("task_id", step.name)
        if step.gpu:  # the pool caps the deployment, the queue finds the machine with the card
            kwargs.setdefault("pool", "gpu")
            kwargs.setdefault("queue", "gpu")
        kwargs.setdefault("executor_config", executor_config(step, Settings()))
        super().__init__(**kwargs)
        self.step = step
        self.run_dir = run_dir
        self._process: subprocess.Popen[str] | None = None
        self._killed = False  # the exit code does not say so: whoever stops a process also takes its code

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step; a second attempt runs it again, and it resumes from its own checkpoints.

        Raises:
            AirflowFailException: Another try would change nothing, or files of a registered version.
        """
        run = Run.open(Path(self.run_dir))
        _require_unregistered(run, self.step)
        self._end_orphan(run)
        code = self._run(run)
        if code == BAD_INPUT or (code == FAILED and _undone(run, self.step)):
            raise AirflowFailException(f"{self.step.name}: {_reason(run, self.step)}")
        if self._killed or code not in (DONE, REJECTED):
            raise StepFailed(self.step.name, code)
        facts: dict[str, Any] = run.read(self.step).model_dump(mode="json")
        if code == REJECTED:
            context["ti"].xcom_push(key="return_value", value=facts)
            rest = sorted(self.downstream_task_ids)
            raise DownstreamTasksSkipped(tasks=rest)  # type: ignore[no-untyped-call]  # Airflow's
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {"run": run.name, **facts}
        return facts

    def on_kill(self) -> None:
        """End the step's whole process group."""
        self._killed = True
        if self._process is not None:
            processes.stop(self._process.pid, grace_seconds=KILL_GRACE_SECONDS)

    def _end_orphan(self, run: Run) -> None:
        """End the step of an earlier attempt that lives on: its worker was killed, and nobody would take its result.

        A step that a person runs from the command line is left alone, and so is what has that number here while the
        step runs on another machine; ours then fails and is tried again.
        """
        orphan = run.claimant(self.step)
        if orphan is not None and processes.carries(orphan, BY_AIRFLOW, run.name):
            self.log.warning("ending process %d: an attempt whose worker died left it behind", orphan)
            processes.end_group(orphan, ORPHAN_GRACE_SECONDS)

    def _run(self, run: Run) -> int:
        settings = Settings()
        self._process = subprocess.Popen(
            command(self.step, run.root, settings, again=True),
            env=step_environment(self.step, run.root, settings) | {BY_AIRFLOW: run.name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.info("%s", line.rstrip())
        return self._process.wait()


@contextmanager
def bad_input_is_final() -> Iterator[None]:
    """In a task: what was asked for cannot be right, so Airflow must not try again."""
    try:
        yield
    except BadInput as error:
        raise AirflowFailException(str(error)) from error


def events_by_name(triggering: Mapping[Any, Any] | None) -> dict[str, list[Mapping[str, Any]]]:
    """What came with the Asset events that started a Dag run: by name of the Asset, the newest last."""
    return {
        asset.name: [event.extra for event in sorted(events, key=lambda event: event.timestamp)]
        for asset, events in (triggering or {}).items()
    }


def leave_reason(context: Context) -> None:
    """Callback of a failed task: say why in the log and, for a step of an opened run, in MLflow."""
    ti = context["ti"]
    error = context.get("exception")
    log.error("%s of %s failed: %s", ti.task_id, ti.run_id, error)
    root = run_root(ti.dag_id, ti.run_id, settings := Settings())
    if ti.task_id not in STEPS or not (root / "config.json").is_file():
        return
    run = Run.open(root)
    try:
        tracking.note_failure(run, ti.task_id, _reason(run, STEPS[ti.task_id]) or str(error), settings)
    except (BadInput, Unreachable) as why:
        log.warning("the reason is not in MLflow: %s", why)


TASK_DEFAULTS: Mapping[str, Any] = {
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,  # a multiplier since Airflow 3.3: True means 1.0, no back-off at all
    "max_retry_delay": timedelta(minutes=10),
    "on_failure_callback": [leave_reason],
}
"""What every task of every Dag has."""


def _require_unregistered(run: Run, step: Step[Any]) -> None:
    """A version is registered by reference: who clears a task of its run would write over what may be serving."""
    if step in RETRAIN and step is not REGISTER and (run.folder(REGISTER) / "output.json").is_file():
        version = run.read(REGISTER)
        raise AirflowFailException(
            f"{step.name}: {version.name} version {version.version} is made of the files of {run.name}, and running "
            f"{step.name} again would replace them; trigger a new run of retrain instead"
        )


def _undone(run: Run, step: Step[Any]) -> bool:
    """Whether a promotion was tried and undone: another try would only hold requests once more."""
    failure = run.failure(step)
    return failure is not None and failure.error == PromotionFailed.__name__


def _reason(run: Run, step: Step[Any]) -> str:
    failure = run.failure(step)
    return f"{failure.error}: {failure.message}" if failure else ""
