"""Where the page lies: beside the decision, in a run's directory and among its files in MLflow alike."""

from __future__ import annotations

from pathlib import Path

from pipelines.run import Run
from pipelines.steps import GATE

FILE = "report.html"
"""In the folder of the gate."""

PLACE = f"{GATE.name}/{FILE}"
"""In the directory of a run."""


def page_of(run: Run) -> Path | None:
    """The page of a run, or None where it has none."""
    path = run.root / PLACE
    return path if path.is_file() else None
