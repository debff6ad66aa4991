"""The retrain Dag, run in-process with real step processes whose work is played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AssetOrTimeSchedule
from airflow.sdk.exceptions import ParamValidationError

from pipelines.assets import new_data, retrain_schedule
from pipelines.dag_runs import open_run, why
from pipelines.errors import BadInput
from pipelines.run import Run, runs_below
from pipelines.settings import Settings
from pipelines.steps import GATE, REGISTER, RETRAIN
from tests import fake_python

RunDag = Callable[..., Any]


def states(run: Any) -> dict[str, str]:
    return {task.task_id: str(task.state) for task in run.get_task_instances()}


def the_run(machine: Settings) -> Run:
    (run,) = runs_below(machine.runs)
    return run


def test_an_accepted_candidate_goes_through_and_is_announced(run_dag: RunDag, machine: Settings) -> None:
    run = run_dag("retrain", {"reason": "a test", "overrides": ["lora.rank=4"]})
    assert run.state == "success"
    assert states(run) == dict.fromkeys(["open_run", *(step.name for step in RETRAIN)], "success")
    ours = the_run(machine)
    assert ours.config.lora.rank == 4
    assert ours.asked() == {"trigger": "hand", "reason": "a test"}
    assert run.get_task_instance("register").xcom_pull(task_ids="register")["version"] == 1
    assert _announced() == {"run": ours.name, **ours.read(REGISTER).model_dump(mode="json")}


def test_a_refused_candidate_leaves_the_gate_green_and_the_rest_skipped(run_dag: RunDag, machine: Settings) -> None:
    fake_python.plan(machine.home, gate="fail")
    before = _announced()
    run = run_dag("retrain")
    assert run.state == "success"
    assert (states(run)["gate"], states(run)["register"]) == ("success", "skipped")
    decision = run.get_task_instance("gate").xcom_pull(task_ids="gate")
    assert decision == the_run(machine).read(GATE).model_dump(mode="json")
    assert [f["name"] for f in decision["findings"] if f["outcome"] == "fail"] == ["colours"]
    assert _announced() == before


def test_a_step_with_bad_input_is_not_retried(run_dag: RunDag, machine: Settings) -> None:
    fake_python.plan(machine.home, fail={"prepare": [2, 0]})
    run = run_dag("retrain")
    assert run.state == "failed"
    assert states(run)["prepare"] == "failed"
    assert len(list(the_run(machine).root.glob("prepare.attempt*"))) == 1


@pytest.mark.parametrize(
    "conf",
    [
        {"config": "configs/smoke.yaml; rm -rf /"},
        {"config": "configs/smoke.json"},
        {"overrides": ["lora.rank"]},
        {"overrides": ["rank=4"]},
        {"overrides": ["lora.rank=4\nmodel.source=x"]},
        {"overrides": "lora.rank=4"},
        {"reason": 7},
    ],
    ids=str,
)
def test_params_that_match_no_pattern_are_refused(run_dag: RunDag, machine: Settings, conf: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError):
        run_dag("retrain", conf)
    assert not machine.runs.exists()


@pytest.mark.parametrize(
    "conf",
    [
        {"config": "/etc/passwd.yaml"},
        {"config": "configs/../../secret.yaml"},
        {"config": "configs/none.yaml"},
        {"overrides": ["lora.rank=0"]},
        {"overrides": ["lora.size=1"]},
    ],
    ids=str,
)
def test_a_config_that_may_not_be_used_or_is_wrong_opens_no_run(
    run_dag: RunDag, machine: Settings, conf: dict[str, Any]
) -> None:
    run = run_dag("retrain", conf)
    assert run.state == "failed"
    assert states(run)["open_run"] == "failed"
    assert not machine.runs.exists() or runs_below(machine.runs) == []


def test_two_dag_runs_never_share_a_directory(settings: Settings) -> None:
    first = open_run("retrain", "new+shelves", {}, settings)
    assert open_run("retrain", "new+shelves", {}, settings) == first  # the same task, once more
    with pytest.raises(BadInput, match=r"retrain-new-shelves is that of Dag run new\+shelves; give"):
        open_run("retrain", "new:shelves", {}, settings)


FROM_WATCHER = {"from_trigger": True, "payload": {"new": 120, "address": "/data/shop"}}


@pytest.mark.parametrize(
    ("run_type", "reason", "events", "trigger", "told"),
    [
        ("manual", "new shelves", {}, "hand", "new shelves"),
        ("scheduled", "", {}, "schedule", "its time had come"),
        ("asset_triggered", "", {"retrain_requested": [{"reason": "old"}, {"reason": "inputs changed"}]}, "monitoring",
         "inputs changed"),
        ("asset_triggered", "", {"new_data": [FROM_WATCHER]}, "data", "120 new files in /data/shop"),
        ("asset_triggered", "", {"new_data": [{"from_rest_api": True}]}, "data", "some new files in the data"),
        ("asset_triggered", "", {"new_data": [FROM_WATCHER], "retrain_requested": [{}]}, "monitoring",
         "no reason given"),
    ],
)  # fmt: skip
def test_what_started_a_run_and_why_is_known(
    run_type: str, reason: str, events: dict[str, list[dict[str, Any]]], trigger: str, told: str
) -> None:
    assert why(run_type, reason, events) == {"trigger": trigger, "reason": told}


def test_the_clock_new_data_and_the_monitor_start_the_same_dag(bag: Any) -> None:
    for cron in (None, "0 3 * * 0"):
        schedule = retrain_schedule(Settings(retrain_schedule=cron))
        assets = getattr(schedule, "asset_condition", schedule)
        assert {asset.name for asset in assets.objects} == {"new_data", "retrain_requested"}
        assert isinstance(schedule, AssetOrTimeSchedule) == (cron is not None)
    assert bag.dags["retrain"].max_active_runs == 1


def test_data_is_watched_only_where_the_settings_name_a_place(tmp_path: Path) -> None:
    assert new_data(Settings(data_watch=None)).watchers == []
    (watcher,) = new_data(Settings(data_watch=str(tmp_path), data_watch_minimum=7)).watchers
    assert watcher.trigger.serialize()[1] == {"address": str(tmp_path), "minimum": 7, "poll_seconds": 300.0}


def _announced() -> dict[str, Any] | None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        return session.scalar(select(AssetEvent.extra).order_by(AssetEvent.id.desc()).limit(1))
