"""What the Dag `monitor` does: let the monitor look, and hand on a retrain that it asks for. Imports no Airflow."""

from __future__ import annotations

from pipelines.errors import BAD_INPUT, DONE, BadInput, StepFailed
from pipelines.launch import run_module
from pipelines.monitoring.place import Place
from pipelines.settings import Settings


def look(settings: Settings) -> None:
    """One look; where a monitor goes on looking by itself, nothing.

    Raises:
        BadInput: Its config or its place is wrong; what it said is in the log.
        StepFailed: It could not look.
    """
    code = run_module(settings, "serving.monitor")
    if code == BAD_INPUT:
        raise BadInput(f"the monitor cannot look with {settings.config}; what it said is above, correct that")
    if code != DONE:
        raise StepFailed("monitor", code)


def reason(settings: Settings) -> str | None:
    """Why a retrain is asked for; None: it is not, or Airflow knows."""
    asking = Place.of(settings).pending()
    return None if asking is None else asking.reason


def handed_on(settings: Settings) -> None:
    """Airflow has the request. After its event, not before: asked twice costs a retrain, never asked is a lost one."""
    place = Place.of(settings)
    if (asking := place.pending()) is not None:
        place.tell(asking)
