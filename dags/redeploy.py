"""The alias `approved` has moved: serve that version, or bring the old one back.

Idempotent: if it already serves, nothing is swapped. Started by the watched alias, or by hand.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import chain, dag, task

from pipelines import dag_runs
from pipelines.assets import approved_alias
from pipelines.operators import TASK_DEFAULTS, StepOperator, bad_input_is_final
from pipelines.settings import Settings
from pipelines.steps import REDEPLOY


@dag(
    schedule=[approved_alias(Settings())],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args=dict(TASK_DEFAULTS),
    doc_md=__doc__,
    tags=["vlmops"],
)
def redeploy() -> None:
    """The step table as tasks."""

    @task
    def open_run(dag_run: Any = None) -> str:
        """Give the run its directory, with the machine's own config."""
        with bad_input_is_final():
            return dag_runs.open_run(dag_run.dag_id, dag_run.run_id, {}, Settings())

    run_dir = open_run()
    tasks = {step: StepOperator(step=step, run_dir=run_dir, doc_md=step.target) for step in REDEPLOY}
    for step in REDEPLOY:
        chain([tasks[need] for need in step.needs] or [run_dir], tasks[step])


redeploy()
