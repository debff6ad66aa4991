"""The Assets that chain the Dags: a candidate is registered, and the alias `approved` has moved."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher

from pipelines.settings import Settings
from pipelines.triggers import RegistryAliasTrigger

MODEL_CANDIDATE = Asset(name="model_candidate", uri="x-vlmops://registry/candidate", group="models")
"""Emitted by the last step of retrain; its extra names the run and the version."""


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
