"""A watcher that fires when the version behind an alias of the model registry changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from pipelines.config_file import load_config


class RegistryAliasTrigger(BaseEventTrigger):
    """Fire when an alias points to another version than the one that was last told.

    Level-triggered: what was told last is remembered in Airflow's asset state, so that a restart neither repeats nor
    loses a move. A registry that does not answer is said once, and asked again.

    :param tracking_uri: address of the MLflow server.
    :param config: the config file that names the registered model; read when the watch begins.
    :param alias: the alias to watch.
    :param poll_seconds: how often to look.
    """

    def __init__(self, tracking_uri: str, config: str, alias: str, poll_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # Airflow's
        self.tracking_uri = tracking_uri
        self.config = config
        self.alias = alias
        self.poll_seconds = poll_seconds
        self._answers = True

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow stores to make this trigger again."""
        arguments = {
            "tracking_uri": self.tracking_uri,
            "config": self.config,
            "alias": self.alias,
            "poll_seconds": self.poll_seconds,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever."""
        model = (await asyncio.to_thread(load_config, Path(self.config))).registry.model
        key = f"{model}@{self.alias}"
        store = self.asset_state_store
        told = await store.aget(key) if store is not None else None
        async with httpx.AsyncClient(base_url=self.tracking_uri, timeout=10) as http:
            while True:
                version = await self._version(http, model)
                if version is not None and version != told:
                    facts = {"name": model, "alias": self.alias, "version": version}
                    yield TriggerEvent(facts)  # type: ignore[no-untyped-call]  # Airflow's
                    told = version
                    if store is not None:
                        await store.aset(key, version)  # after the event: told twice is harmless, never told is not
                await asyncio.sleep(self.poll_seconds)

    async def _version(self, http: httpx.AsyncClient, model: str) -> int | None:
        """The version behind the alias, or None if there is none or the registry does not answer."""
        query = {"name": model, "alias": self.alias}
        try:
            reply = await http.get("/api/2.0/mlflow/registered-models/alias", params=query)
            if reply.status_code not in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND):  # no such model or alias yet
                reply.raise_for_status()
        except httpx.HTTPError as error:
            self._say(answers=False, why=error)
            return None
        self._say(answers=True)
        return int(reply.json()["model_version"]["version"]) if reply.is_success else None

    def _say(self, *, answers: bool, why: object = None) -> None:
        if answers != self._answers:
            state = "answers again" if answers else f"does not answer ({why}); a moved alias will be seen when it does"
            self.log.warning("registry at %s %s", self.tracking_uri, state)
            self._answers = answers
