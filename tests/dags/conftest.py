"""A migrated Airflow database, the loaded Dags, and a machine whose steps are played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import ROOT, Settings
from tests import airflow_home, fake_python

DAGS = ROOT / "dags"


@pytest.fixture(scope="session")
def airflow_database() -> Path:
    """The metadata database with the pool `gpu`."""
    from airflow.models.pool import Pool
    from airflow.utils.db import initdb

    initdb()
    Pool.create_or_update_pool("gpu", 1, "one card", include_deferred=False)
    return airflow_home.HOME


@pytest.fixture(scope="session")
def bag() -> Any:
    """Every Dag."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(DAGS)


@pytest.fixture
def machine(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """A machine whose interpreters are played by fake_python."""
    python = fake_python.install(tmp_path)
    monkeypatch.setenv("VLMOPS_ML_PYTHON", python)
    monkeypatch.setenv("VLMOPS_CORE_PYTHON", python)
    return settings.model_copy(update={"ml_python": python, "core_python": python})


@pytest.fixture
def run_dag(airflow_database: Path, bag: Any, machine: Settings) -> Callable[..., Any]:
    """Run a Dag in this process, without a scheduler."""

    def run(dag_id: str, conf: dict[str, Any] | None = None, **options: Any) -> Any:
        return bag.dags[dag_id].test(run_conf=conf, **options)

    return run
