"""Every Dag loads, is light, keeps the house rules and has the shape of the step table."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pipelines.operators import StepOperator, leave_reason
from pipelines.settings import ROOT
from pipelines.steps import REDEPLOY, RETRAIN, Step

FILES = sorted((ROOT / "dags").glob("*.py"))
HEAVY = {"torch", "transformers", "vllm", "mlflow", "bitsandbytes", "peft", "training", "serving"}


def test_dag_files_are_found() -> None:
    assert {path.stem for path in FILES} >= {"retrain", "review", "redeploy"}


def test_every_dag_loads(bag: Any) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == {path.stem for path in FILES}


def test_dag_files_are_short() -> None:
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 80} == {}


def test_parsing_imports_nothing_heavy() -> None:
    program = (
        "import json, runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path)\nprint(json.dumps(list(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *map(str, FILES)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded = {name.partition(".")[0] for name in json.loads(printed.splitlines()[-1])}
    assert "airflow" in loaded
    assert loaded & HEAVY == set()


def test_house_rules_of_dags(bag: Any) -> None:
    for dag in bag.dags.values():
        assert dag.tags, dag.dag_id
        assert dag.doc_md, dag.dag_id
        assert dag.catchup is False, dag.dag_id
        assert dag.max_active_runs == (8 if dag.dag_id == "review" else 1)


def test_house_rules_of_tasks(bag: Any) -> None:
    tasks = [task for dag in bag.dags.values() for task in dag.tasks]
    assert len(tasks) >= len(RETRAIN) + len(REDEPLOY) + 5
    for task in tasks:
        assert task.retries >= 2, task.task_id
        assert task.retry_exponential_backoff == 2.0, task.task_id
        assert task.on_failure_callback == [leave_reason], task.task_id


@pytest.mark.parametrize(("dag_id", "table"), [("retrain", RETRAIN), ("redeploy", REDEPLOY)])
def test_structure_is_the_step_table(bag: Any, dag_id: str, table: tuple[Step[Any], ...]) -> None:
    dag = bag.dags[dag_id]
    assert set(dag.task_ids) == {"open_run", *(step.name for step in table)}
    for step in table:
        task = dag.get_task(step.name)
        assert isinstance(task, StepOperator)
        assert task.upstream_task_ids >= {need.name for need in step.needs}
        assert task.upstream_task_ids <= {"open_run", *(need.name for need in step.needs)}
        assert (task.pool, task.queue) == (("gpu", "gpu") if step.gpu else ("default_pool", "default"))


def test_only_the_last_step_of_retrain_emits_a_candidate(bag: Any) -> None:
    emitting = {t.task_id: [a.name for a in t.outlets] for t in bag.dags["retrain"].tasks if t.outlets}
    assert emitting == {"register": ["model_candidate"]}


def test_review_waits_for_the_reviewer_and_silence_rejects(bag: Any) -> None:
    person = bag.dags["review"].get_task("person")
    assert person.assigned_users == [{"id": "reviewer", "name": "reviewer"}]
    assert person.defaults == ["Reject"]
    assert person.response_timeout is not None


def test_redeploy_watches_the_alias_only_where_a_registry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.assets import approved_alias
    from pipelines.settings import Settings

    assert approved_alias(Settings(mlflow_uri=None)).watchers == []
    (watcher,) = approved_alias(Settings(mlflow_uri="http://127.0.0.1:1")).watchers
    assert watcher.trigger.serialize()[1]["alias"] == "approved"
