"""`make demo`: the whole line through the real Airflow, MLflow, vLLM and Caddy, shown as it goes.

The story: retrain, a person's approval (given by the demo, as the reviewer, and it says so), redeploy; then a retrain
that forgets the older tasks, which the gate must refuse while the champion goes on answering.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from pipelines.dag_runs import APPROVE, run_root
from pipelines.demo import report as demo_report
from pipelines.demo.screen import Screen
from pipelines.embedded import state as stack_state
from pipelines.embedded.airflow_api import FINAL, Airflow, wait_for
from pipelines.embedded.components import ADMIN
from pipelines.embedded.stack import Stack, addresses, stay
from pipelines.errors import DONE, FAILED, VlmopsError
from pipelines.launch import environment
from pipelines.registry import Registry
from pipelines.run import Run
from pipelines.settings import ROOT, Settings
from pipelines.steps import GATE, PREPARE, PROMOTE, REGISTER, STEPS
from pipelines.system.processes import free_port

CONFIG = "configs/smoke.yaml"
DAG_SECONDS = 1800
NEXT_DAG_SECONDS = 120
"""From the event that starts a Dag to its run."""


class DemoFailed(VlmopsError):
    """The line did not do what the demo shows."""


@dataclass(frozen=True)
class Scan:
    """A held-out image, the question about it, and the truth."""

    image: Path
    question: str
    truth: str


def run_demo(settings: Settings, *, keep: bool) -> int:
    """Run the story on a fresh state of its own and return the exit code.

    Args:
        keep: Leave everything running at the end, until Ctrl-C.

    Raises:
        MachineUnfit: Another demo of this home is running, or a port is taken.
        DemoFailed: A Dag failed, or the gate let the forgetful candidate pass.
    """
    screen = Screen(Console() if sys.stdout.isatty() else Console(width=160))
    home = demo_settings(settings)
    clear(home)
    screen.say("starting Airflow, MLflow and the serving front on 127.0.0.1")
    try:
        with Stack(home) as stack, stack.login(ADMIN) as airflow:
            screen.say(f"ready in {stack.ready_seconds:.0f} s")
            Story(stack, airflow, screen).tell()
            if keep:
                screen.say("everything stays up until Ctrl-C")
                stay(stack)
    except KeyboardInterrupt:
        screen.say("interrupted; everything is stopped")
        return FAILED
    screen.say("everything is stopped")
    return DONE


def demo_settings(settings: Settings) -> Settings:
    """A home of the demo's own with free ports; the cache of base models is shared."""
    return settings.model_copy(
        update={
            "home": settings.home / "demo",
            "cache_dir": settings.cache,
            "config": ROOT / CONFIG,
            "mlflow_uri": None,
            "retrain_schedule": None,
            "registry_poll_seconds": 1.0,
            "front_port": free_port(),
            "engine_port": free_port(),
            "ready_port": free_port(),
            "keys_port": free_port(),
        }
    )


def clear(settings: Settings) -> None:
    """Remove what an earlier demo left, its processes first.

    Raises:
        MachineUnfit: It is still running.
    """
    with stack_state.sole_stack(settings.state):
        stack_state.end_leftovers(settings.state)
        for path in (settings.runs, settings.sealed, *settings.state.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != stack_state.LOCK:  # its holder keeps it; a new file would be a second lock
                path.unlink(missing_ok=True)


class Story:
    """The demo on a running stack."""

    def __init__(self, stack: Stack, airflow: Airflow, screen: Screen) -> None:
        self._stack, self._airflow, self._screen = stack, airflow, screen
        self._settings = stack.settings

    def tell(self) -> None:
        """The whole of it, with the report at the end."""
        began = datetime.now(UTC)
        self._screen.say("retrain: from the base model to a registered candidate")
        accepted = self._retrain((), "the demo")
        if not accepted.finished(REGISTER):
            raise DemoFailed(f"the gate refused the first candidate: {', '.join(demo_report.failed_slices(accepted))}")
        version = accepted.read(REGISTER)
        self._review(began)
        redeployed = self._redeploy(began, version.version)
        self._screen.say("retrain again, without the replay of older tasks: it must be refused")
        refused = self._retrain(("data.replay=0",), "the demo: leave out the older tasks")
        if refused.read(GATE).proceed:
            raise DemoFailed("the gate let the forgetful candidate pass")
        self._screen.say(f"refused, as it must be: it forgets {', '.join(demo_report.failed_slices(refused))}")
        aliases = self._aliases(accepted)
        if aliases.get("champion") != version.version:
            raise DemoFailed(f"the champion is {aliases.get('champion')}, and version {version.version} should be")
        scan = held_out(accepted)
        answer = self._ask(scan)
        demo_report.print_report(self._screen.console, accepted, refused, redeployed, aliases)
        self._screen.say("the champion still answers, asked through Caddy about a scan that it never saw:")
        self._screen.say(f"  {scan.image.name}: {scan.question}\n  answer: {answer}\n  truth:  {scan.truth}")
        for line in addresses(self._stack):
            self._screen.say(line)

    def _retrain(self, overrides: tuple[str, ...], reason: str) -> Run:
        conf = {"config": CONFIG, "overrides": list(overrides), "reason": reason}
        return self._follow("retrain", self._airflow.trigger("retrain", conf))

    def _review(self, since: datetime) -> None:
        run_id = self._next("review", since)
        reviewer = self._settings.reviewer
        self._screen.say(f"review: the demo itself approves, through Airflow's REST API, as the user {reviewer}")
        with self._stack.login(reviewer) as person:
            review = person.answer_when_settled("review", run_id, APPROVE, "the demo approves what the gate passed")
        self._screen.say(f"approved: {review.subject}")
        self._watch("review", run_id)

    def _redeploy(self, since: datetime, version: int) -> Run:
        self._screen.say("redeploy: the alias `approved` has moved")
        run = self._follow("redeploy", self._next("redeploy", since))
        if (served := run.read(PROMOTE).version) != version:
            raise DemoFailed(f"version {served} was put into service, and version {version} was approved")
        return run

    def _follow(self, dag_id: str, run_id: str) -> Run:
        self._watch(dag_id, run_id)
        return Run.open(run_root(dag_id, run_id, self._settings))

    def _next(self, dag_id: str, since: datetime) -> str:
        """The first run of a Dag since a moment."""
        return wait_for(
            lambda: next(iter(self._airflow.runs(dag_id, since)), None), NEXT_DAG_SECONDS, f"a run of {dag_id}"
        )

    def _watch(self, dag_id: str, run_id: str) -> None:
        """Show a Dag run until it ends; raise DemoFailed if it fails."""
        with self._screen.dag_run(dag_id):
            state = wait_for(lambda: self._look(dag_id, run_id), DAG_SECONDS, f"{dag_id} to end", interval=0.5)
        if state != "success":
            logs = self._settings.state / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
            why = _failures(Run(run_root(dag_id, run_id, self._settings)))
            raise DemoFailed(f"{dag_id} failed{why}; the logs of its tasks are in {logs}")

    def _look(self, dag_id: str, run_id: str) -> str | None:
        self._stack.check()
        state = self._airflow.run_state(dag_id, run_id)
        self._screen.show(self._airflow.tasks(dag_id, run_id))
        return state if state in FINAL else None

    def _aliases(self, run: Run) -> dict[str, int]:
        return Registry(self._settings, run.config.registry.model).aliases()

    def _ask(self, scan: Scan) -> str:
        """Ask the served model through the front."""
        command = [self._settings.ml_python, "-m", "serving.ask", str(scan.image), scan.question]
        asked = subprocess.run(command, env=environment(self._settings), capture_output=True, text=True, check=False)
        if asked.returncode != DONE:
            raise DemoFailed(f"the served model does not answer: {asked.stderr.strip()}")
        return asked.stdout.strip()


def _failures(run: Run) -> str:
    found = ((step.name, run.failure(step)) for step in STEPS.values())
    return "".join(f": {name}: {failure.error}: {failure.message}" for name, failure in found if failure)


def held_out(run: Run) -> Scan:
    """The first test question about a real scan."""
    folder = run.read(PREPARE).path
    wanted = run.config.gate.requirements[0].slice
    rows = (json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines())
    *asked, answer = next(row for row in rows if row["slice"] == wanted)["messages"]
    parts = {part["type"]: part for part in asked[-1]["content"]}
    truth = "".join(part["text"] for part in answer["content"])
    return Scan(image=folder / parts["image"]["image"], question=parts["text"]["text"], truth=truth)
