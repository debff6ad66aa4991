"""LocalExecutor, and the card behind an Edge worker that sees no database: the retrain Dag as it is, steps played."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.embedded import components
from pipelines.embedded.airflow_api import FINAL, Airflow
from pipelines.embedded.components import ADMIN, Ports
from pipelines.embedded.parts import Parts
from pipelines.errors import Unreachable
from pipelines.run import runs_below
from pipelines.settings import Settings
from pipelines.steps import REGISTER, RETRAIN
from pipelines.system.processes import free_port
from tests import fake_python

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EDGE = "airflow.providers.edge3.executors.EdgeExecutor"
POLICY = f"""
def task_policy(task):
    if task.queue == "gpu":
        task.executor = "{EDGE}"
"""
"""Airflow sends a task to its first executor, whatever the queue; so a machine with a card elsewhere has this in
`config/airflow_local_settings.py` of its AIRFLOW_HOME."""


class Central:
    """Airflow with both executors, and one worker that reaches it by HTTP alone."""

    def __init__(self, folder: Path) -> None:
        python = fake_python.install(folder)
        self.settings = Settings(home=folder / "home", ml_python=python, mlflow_uri="http://127.0.0.1:9")
        ports = Ports(airflow=free_port(), mlflow=9)
        self.url = f"http://127.0.0.1:{ports.airflow}"
        self.airflow_home = self.settings.state / "airflow"
        environment = components.stack_environment(self.settings, ports) | {
            "VLMOPS_CORE_PYTHON": python,  # of steps; Airflow itself has the real one
            "AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,{EDGE}",
            "AIRFLOW__EDGE__API_ENABLED": "True",
            "AIRFLOW__EDGE__API_URL": f"{self.url}/edge_worker/v1/rpcapi",
            "AIRFLOW__EDGE__JOB_POLL_INTERVAL": "1",
            "AIRFLOW__EDGE__HEARTBEAT_INTERVAL": "5",
        }
        self.parts = Parts(self.settings.state / "logs", environment)
        self.worker = Parts(self.settings.state / "logs", environment | _elsewhere(folder / "elsewhere"))

    def start(self) -> None:
        """Start everything, and wait until the Dags are there."""
        (self.airflow_home / "config").mkdir(parents=True)
        (self.airflow_home / "config" / "airflow_local_settings.py").write_text(POLICY)
        components.write_passwords(self.settings)
        self.parts.run("migrate", components.airflow_command(self.settings, "db", "migrate"), 240)
        for name, command in components.airflow_components(self.settings).items():
            if name != "triggerer":
                self.parts.start(name, command)
        self.parts.wait(self._has_dags, 240, "Airflow to load the Dags")
        with self.login() as airflow:
            airflow.ensure_pool("gpu", 1, "one card")
        edge = components.airflow_command(self.settings, "edge", "worker", "-q", "gpu", "-c", "1", "-H", "card")
        self.worker.start("worker", edge)

    def stop(self) -> None:
        """End everything."""
        self.worker.stop(4)
        self.parts.stop(4)

    def login(self) -> Airflow:
        """As who may do everything."""
        return Airflow(self.url, ADMIN, components.password(self.settings, ADMIN))

    def carried(self, run_id: str) -> dict[str, str]:
        """Which tasks of a run an Edge worker had, and its name."""
        with closing(sqlite3.connect(self.airflow_home / "airflow.db")) as database:
            return dict(database.execute("SELECT task_id, edge_worker FROM edge_job WHERE run_id = ?", [run_id]))

    def _has_dags(self) -> bool:
        try:
            with self.login() as airflow:
                assert airflow.import_errors() == []
                return airflow.dags() >= {"retrain"}
        except Unreachable:
            return False


def _elsewhere(home: Path) -> dict[str, str]:
    """A machine of its own: it knows no database, and has none of Airflow's secrets but the one that signs."""
    home.mkdir()
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nowhere/airflow.db",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__API__SECRET_KEY": "another",
    }


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    running = Central(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_the_card_may_be_behind_an_edge_worker(central: Central) -> None:
    with central.login() as airflow:
        run_id = airflow.trigger("retrain", {"reason": "a test"})
        central.parts.wait(lambda: airflow.run_state("retrain", run_id) in FINAL, 300, "the end of the run")
        states = {task.task_id: (task.state, task.try_number) for task in airflow.tasks("retrain", run_id)}
    assert states == dict.fromkeys(["open_run", *(step.name for step in RETRAIN)], ("success", 1))
    assert central.carried(run_id) == dict.fromkeys([step.name for step in RETRAIN if step.gpu], "card")
    (run,) = runs_below(central.settings.runs)
    assert run.read(REGISTER).version == 1
