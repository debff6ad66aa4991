"""A comparison as MLflow shows it: figures and files beside those of its run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.comparison.found import Comparison
from pipelines.comparison.table import measured_figures
from pipelines.errors import BadInput, Unreachable
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.tracking import answering, client, log_figures, publish

log = logging.getLogger(__name__)


def publish_comparison(run: Run, found: Comparison, files: Sequence[Path], settings: Settings) -> None:
    """Copy it to the run's MLflow run, or say that the server is away: the files are there anyway."""
    try:
        run_id, mlflow = publish(run, settings), client(settings)
        with answering(settings):
            log_figures(mlflow, run_id, _figures(found), int(time.time() * 1000))
            for file in files:
                mlflow.log_artifact(run_id, str(file), "compare")
    except (Unreachable, BadInput) as error:
        log.warning("the comparison is not in MLflow: %s", error)


def _figures(found: Comparison) -> Iterator[tuple[int, str, float]]:
    for row in found.measured:
        yield from ((0, f"compare.{row.name}.{name}", value) for name, value in measured_figures(row).items())
