"""The production stack, running for as long as its tests do. Left out without its programs, except where promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.settings import ROOT
from tests.services import require
from tests.stack.production import Production, program
from tests.stack.small_line import write_config, write_squares

PROGRAMS = ("postgres", "initdb", "psql", "pg_isready", "redis-server")

FASTER = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "12",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__API__WORKERS": "1",
}
"""What a test cannot wait for."""


@pytest.fixture(scope="session")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Everything of the profile core, and the worker of the profile gpu."""
    missing = [name for name in PROGRAMS if program(name) is None]
    require(not missing, f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("production")
    config = write_config(folder / "config.yaml", write_squares(folder / "data"))
    stack = Production(folder / "home", config, ROOT / ".vlmops" / "cache", FASTER)
    try:
        stack.start()
        stack.ready({"retrain", "review", "redeploy"})
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def home(production: Production) -> Path:
    """Where its runs lie."""
    return Path(production.places["/var/lib/vlmops"])
