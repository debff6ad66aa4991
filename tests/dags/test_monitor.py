"""The Dag `monitor`: it looks, and what the monitor asks for reaches Airflow once, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.monitoring.place import Place
from pipelines.monitoring.policy import Asking
from pipelines.settings import Settings
from tests import fake_python

REQUEST = Asking(
    asked=datetime(2026, 11, 24, tzinfo=UTC), reason="input changed: aspect (PSI 0.40, n 300)", armed=False
)


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def events() -> list[dict[str, Any]]:
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        return [event.extra for event in session.scalars(query.where(AssetModel.name == "retrain_requested"))]


def test_a_request_is_told_once_with_its_reason(run_dag: Callable[..., Any], machine: Settings) -> None:
    fake_python.plan(machine.home)
    place = Place.of(machine)
    place.folder.mkdir(parents=True)
    place.ask(REQUEST)
    before = len(events())
    assert set(states(run_dag("monitor")).values()) == {"success"}
    assert (machine.home / "looked").is_file()
    assert [extra["reason"] for extra in events()[before:]] == [REQUEST.reason]
    again = states(run_dag("monitor"))
    assert (again["reason"], again["ask"], again["handed_on"]) == ("success", "skipped", "skipped")
    assert len(events()) == before + 1


def test_a_look_that_hangs_is_not_the_last_one(bag: Any) -> None:
    dag = bag.dags["monitor"]
    assert dag.max_active_runs == 1  # so that the next one waits for it
    assert dag.get_task("look").execution_timeout <= timedelta(minutes=10)


def test_a_look_that_failed_asks_for_nothing(run_dag: Callable[..., Any], machine: Settings) -> None:
    fake_python.plan(machine.home, monitor=2)
    before = len(events())
    run = states(run_dag("monitor"))
    assert run["ask"] in {"upstream_failed", "None"}
    assert len(events()) == before
