"""What starts a review, what a person sees, and redeploy. Real answers are given in tests/pipelines/test_stack.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from pipelines.config import Config
from pipelines.dag_runs import allowed_config, answered, registered_candidate, review_text, run_root
from pipelines.errors import BadInput
from pipelines.operators import StepOperator
from pipelines.run import Run, runs_below
from pipelines.settings import ROOT, Settings
from pipelines.steps import EVALUATE, GATE, PROMOTE, REGISTER, RETRAIN, TARGET
from tests import fake_python

RunDag = Callable[..., Any]


@pytest.fixture
def candidate(machine: Settings, smoke: Config) -> Run:
    """A run that went through to a registered candidate."""
    run = Run.create(run_root("retrain", "one", machine), smoke)
    for step in RETRAIN:
        StepOperator(step=step, run_dir=str(run.root)).execute({})
    return run


def test_a_person_sees_the_gates_reasons_and_the_figures(machine: Settings, candidate: Run) -> None:
    asked = registered_candidate([{"run": candidate.name}], None, machine)
    assert (asked["name"], asked["version"], asked["subject"]) == ("digits", 1, "Serve digits version 1?")
    assert "The gate says **pass** against base." in asked["body"]
    assert "- colours: **pass**. colours: 37 to 95 of 100" in asked["body"]
    assert "| digits | 37.0% (32.0% to 42.0%, n 100) | 95.0% (90.0% to 100.0%, n 100) |" in asked["body"]


def test_a_person_finds_the_whole_report(candidate: Run) -> None:
    address = "http://127.0.0.1:5000/#/experiments/1/runs/r/artifacts/gate/report.html"
    version = candidate.read(REGISTER).model_copy(update={"report": address})
    assert f"]({address})" in review_text(version, candidate.read(EVALUATE), candidate.read(GATE))


def test_a_named_run_comes_before_an_event_and_the_newest_event_before_older_ones(
    machine: Settings, candidate: Run
) -> None:
    assert registered_candidate([{"run": "none"}], candidate.name, machine)["version"] == 1
    assert registered_candidate([{"run": "none"}, {"run": candidate.name}], None, machine)["version"] == 1


@pytest.mark.parametrize("extras", [[], [{}], [{"run": "../../etc"}], [{"run": "none"}]], ids=str)
def test_an_event_without_a_run_of_ours_is_refused(machine: Settings, extras: list[dict[str, Any]]) -> None:
    with pytest.raises(BadInput):
        registered_candidate(extras, None, machine)


def test_a_review_without_a_candidate_fails_and_asks_nobody(run_dag: RunDag) -> None:
    run = run_dag("review")
    states = {task.task_id: task.state for task in run.get_task_instances()}
    assert run.state == "failed"
    assert states == dict.fromkeys(["person", "record"], "upstream_failed") | {"candidate": "failed"}


@pytest.mark.parametrize("name", ["../one", "a/b", "", "a b", 7])
def test_a_run_is_named_and_never_a_path(run_dag: RunDag, name: object) -> None:
    with pytest.raises(ParamValidationError):
        run_dag("review", {"run": name})


def test_an_answer_has_an_author_and_silence_says_so_and_rejects() -> None:
    said = {
        "responded_by_user": {"id": "reviewer", "name": "reviewer"},
        "params_input": {"reason": "fine"},
        "chosen_options": ["Approve"],
    }
    assert answered(said) == ("reviewer", "fine", True)
    silence = {"responded_by_user": None, "params_input": {}, "chosen_options": ["Reject"]}
    assert answered(silence) == ("nobody (the request expired)", "", False)


def test_an_answer_that_cannot_be_recorded_fails_the_review(bag: Any) -> None:
    assert [task.task_id for task in bag.dags["review"].leaves] == ["record"]
    assert bag.dags["review"].get_task("record").trigger_rule == "all_success"


def test_redeploy_serves_the_target_and_tries_again(run_dag: RunDag, machine: Settings) -> None:
    fake_python.plan(machine.home, fail={"promote": [1, 0]})
    run = run_dag("redeploy")
    assert run.state == "success"
    (ours,) = runs_below(machine.runs)
    assert ours.name.startswith("redeploy-")
    assert ours.read(PROMOTE).version == ours.read(TARGET).version
    assert len(list(ours.root.glob("promote.attempt*"))) == 2


def test_a_config_lies_where_the_owner_keeps_configs(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    settings = Settings(config=mine / "model.yaml")
    assert allowed_config("configs/smoke.yaml", settings) == ROOT / "configs" / "smoke.yaml"
    assert allowed_config(str(mine / "other.yaml"), settings) == mine / "other.yaml"
    (mine / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    for path in (mine / "link.yaml", mine / ".." / "secret.yaml", Path("pipelines/x.yaml")):
        with pytest.raises(BadInput, match="is not below"):
            allowed_config(str(path), settings)
