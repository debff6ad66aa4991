"""A registered candidate waits for a person, who sees the gate's reasons and figures.

Approve moves the alias `approved`, which starts redeploy; reject tags the version with the reviewer and the reason.
A Dag of its own, so that a waiting person never holds the one slot of retrain.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param, dag, task

from pipelines import dag_runs
from pipelines.assets import MODEL_CANDIDATE
from pipelines.operators import TASK_DEFAULTS, bad_input_is_final
from pipelines.registry import Registry
from pipelines.settings import Settings

SETTINGS = Settings()
CANDIDATE = "ti.xcom_pull(task_ids='candidate')"


@dag(
    schedule=[MODEL_CANDIDATE],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=8,
    default_args=dict(TASK_DEFAULTS),
    params={
        "run": Param(
            None,
            type=["string", "null"],
            maxLength=300,
            pattern=dag_runs.RUN_PATTERN,
            description="The name of a run whose candidate is to be reviewed; empty when the Asset started this.",
        )
    },
    doc_md=__doc__,
    tags=["vlmops"],
)
def review() -> None:
    """Look, ask, record."""

    @task
    def candidate(triggering_asset_events: Any = None, params: Any = None) -> dict[str, Any]:
        """What is to be decided, with its figures."""
        events = sorted((triggering_asset_events or {}).get(MODEL_CANDIDATE, []), key=lambda event: event.timestamp)
        with bad_input_is_final():
            return dag_runs.registered_candidate([event.extra for event in events], params["run"], Settings())

    @task
    def record(version: dict[str, Any], answer: dict[str, Any]) -> None:
        """Write the answer into the registry."""
        reviewer, reason, approved = dag_runs.answered(answer)
        registry = Registry(Settings(), version["name"])
        decide = registry.approve if approved else registry.reject
        decide(version["version"], reviewer=reviewer, reason=reason)

    version = candidate()
    # Not ApprovalOperator: a rejection would skip the task that records it.
    person = HITLOperator(
        task_id="person",
        subject=f"{{{{ {CANDIDATE}['subject'] }}}}",
        body=f"{{{{ {CANDIDATE}['body'] }}}}",
        options=[dag_runs.APPROVE, dag_runs.REJECT],
        defaults=dag_runs.REJECT,  # silence is not consent
        params={"reason": Param("", type="string", maxLength=500, description="Kept with the version.")},
        assigned_users=[{"id": SETTINGS.reviewer, "name": SETTINGS.reviewer}],
        response_timeout=timedelta(days=14),
    )
    version >> person >> record(version, person.output)


review()
