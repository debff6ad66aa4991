"""Look at what serves, the card and the disks; ask for a retrain where the config's policy says so.

`vlmops monitor --every 60` does the same more often, tells Prometheus, and hears of XIDs; this then only hands on a
request. Inputs that changed are a reason to retrain (`monitoring.retrain.on`), or are shown and nothing follows.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from pipelines.assets import RETRAIN_REQUESTED
from pipelines.monitoring import asked
from pipelines.operators import TASK_DEFAULTS, bad_input_is_final
from pipelines.settings import Settings


@dag(
    schedule="*/5 * * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args=dict(TASK_DEFAULTS),
    doc_md=__doc__,
    tags=["vlmops"],
)
def monitor() -> None:
    """Look, and ask where there is something to ask for."""

    # Not the pool: it only looks, beside whatever has the card. One that hangs must not be the last.
    @task(queue="gpu", execution_timeout=timedelta(minutes=10))
    def look() -> None:
        """One look, on the machine that serves."""
        with bad_input_is_final():
            asked.look(Settings())

    @task.short_circuit
    def reason() -> str | None:
        """Why a retrain is asked for; without one nothing follows."""
        return asked.reason(Settings())

    @task(outlets=[RETRAIN_REQUESTED])
    def ask(why: str, outlet_events: Any = None) -> None:
        """Tell Airflow, with the reason."""
        outlet_events[RETRAIN_REQUESTED].extra = {"reason": why}

    @task
    def handed_on() -> None:
        """Remember that it was told."""
        asked.handed_on(Settings())

    why = reason()
    look() >> why
    ask(why) >> handed_on()


monitor()
