"""The section `retention` of the config: what `vlmops gc` leaves, and where MLflow's metadata lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.section import Section


class Retention(Section):
    """What is kept; whatever serves, served before, is approved, waits for review or was released always is."""

    keep_last: int = Field(5, ge=1)
    """The newest runs, of retrains and of redeploys each."""

    keep_days: float = Field(30.0, ge=1)
    """Whatever was changed within so many days."""

    open_days: float = Field(60.0, ge=1)
    """Runs that have not finished, and versions that nobody has reviewed, count as open for so many days."""

    shared_cache: bool = True
    """Where the cache is outside the home (`VLMOPS_CACHE_DIR`): other homes use it too, so nothing in it is deleted."""

    mlflow_artifacts: Path | None = None
    """Folder with MLflow's files. None: the embedded stack's own, `state/mlflow-artifacts`; or a bucket, which has a
    backup of its own."""

    mlflow_database_from: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """Variable with the address of MLflow's database, `postgresql://user:password@host/name`. None: the embedded
    stack's own, `state/mlflow.db`."""
