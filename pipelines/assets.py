"""The Assets that chain the Dags: a candidate is registered, and the alias `approved` has moved."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable

from pipelines.settings import Settings
from pipelines.triggers import NewDataTrigger, RegistryAliasTrigger

NEW_DATA = "new_data"

MODEL_CANDIDATE = Asset(name="model_candidate", uri="x-vlmops://registry/candidate", group="models")
"""Emitted by the last step of retrain; its extra names the run and the version."""

RETRAIN_REQUESTED = Asset(name="retrain_requested", uri="x-vlmops://monitor/retrain", group="models")
"""Emitted by the Dag `monitor` when what is seen in service asks for a retrain; its extra has the reason."""


def approved_alias(settings: Settings) -> Asset:
    """The alias `approved`, watched where it lives: it may be moved in Airflow, by command, or on the MLflow page."""
    watchers = []
    if settings.mlflow_uri:
        trigger = RegistryAliasTrigger(
            tracking_uri=settings.mlflow_uri,
            config=str(settings.config),
            alias="approved",
            poll_seconds=settings.registry_poll_seconds,
        )
        watchers = [AssetWatcher(name="alias_approved", trigger=trigger)]
    return Asset(name="model_approved", uri="x-vlmops://registry/approved", group="models", watchers=watchers)


def new_data(settings: Settings) -> Asset:
    """Data that nothing was trained on yet, watched where the settings name a place."""
    watchers = []
    if settings.data_watch:
        trigger = NewDataTrigger(settings.data_watch, settings.data_watch_minimum, settings.data_poll_seconds)
        watchers = [AssetWatcher(name="data_folder", trigger=trigger)]
    return Asset(name=NEW_DATA, uri="x-vlmops://data/new", group="models", watchers=watchers)


def retrain_schedule(settings: Settings) -> Any:
    """What starts a retrain besides people: new data, a request of the monitor, and the clock where one is set."""
    asked = new_data(settings) | RETRAIN_REQUESTED
    if settings.retrain_schedule is None:
        return asked
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(settings.retrain_schedule, timezone="UTC"), assets=asked)
