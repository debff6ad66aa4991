"""A comparison as MLflow shows it: figures and files beside those of its run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.comparison.found import Comparison
from pipelines.comparison.table import measured_figures
from pipelines.errors import BadInput, Unreachable
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.tracking import client, publish

log = logging.getLogger(__name__)


def publish_comparison(run: Run, found: Comparison, files: Sequence[Path], settings: Settings) -> None:
    """Copy it to the run's MLflow run, or say that the server is away: the files are there anyway."""
    try:
        run_id, mlflow = publish(run, settings), client(settings)
    except (Unreachable, BadInput) as error:
        log.warning("the comparison is not in MLflow: %s", error)
        return
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values = {
        f"compare.{row.name}.{name}": value for row in found.measured for name, value in measured_figures(row).items()
    }
    mlflow.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in values.items()])
    for file in files:
        mlflow.log_artifact(run_id, str(file), "compare")
