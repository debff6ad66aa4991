"""Retrain, quantise and judge the vision-language model; a candidate that passes the gate is registered.

Started by hand, by the clock (`VLMOPS_RETRAIN_SCHEDULE`), by new data (`VLMOPS_DATA_WATCH`) or by the Dag `monitor`;
one at a time, and the reason is kept with the run. A gate that says no is not a failure: it is green, its log holds the
reasons, and nothing is registered.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import Param, chain, dag, task

from pipelines import dag_runs
from pipelines.assets import MODEL_CANDIDATE, retrain_schedule
from pipelines.operators import TASK_DEFAULTS, StepOperator, bad_input_is_final, events_by_name
from pipelines.settings import Settings
from pipelines.steps import RETRAIN

SETTINGS = Settings()


@dag(
    schedule=retrain_schedule(SETTINGS),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args=dict(TASK_DEFAULTS),
    params={
        "config": Param(
            str(SETTINGS.config),
            type="string",
            maxLength=500,
            pattern=dag_runs.CONFIG_PATTERN,
            description="The config of the run: a file below configs/ or beside the machine's own config.",
        ),
        "overrides": Param(
            [],
            type="array",
            maxItems=50,
            items={"type": "string", "pattern": dag_runs.OVERRIDE_PATTERN},
            description="`section.field=value` each, such as lora.rank=32.",
        ),
        "reason": Param("", type="string", maxLength=500, description="Why; kept with the run."),
    },
    doc_md=__doc__,
    tags=["vlmops"],
)
def retrain() -> None:
    """The step table as tasks."""

    @task
    def open_run(params: Any = None, dag_run: Any = None, triggering_asset_events: Any = None) -> str:
        """Check the config and give the run its directory, with what started it and why."""
        asked = dag_runs.why(str(dag_run.run_type), params["reason"], events_by_name(triggering_asset_events))
        with bad_input_is_final():
            return dag_runs.open_run(dag_run.dag_id, dag_run.run_id, params, Settings(), asked)

    run_dir = open_run()
    tasks = {
        step: StepOperator(
            step=step, run_dir=run_dir, outlets=[MODEL_CANDIDATE] if step is RETRAIN[-1] else [], doc_md=step.target
        )
        for step in RETRAIN
    }
    for step in RETRAIN:
        chain([tasks[need] for need in step.needs] or [run_dir], tasks[step])


retrain()
