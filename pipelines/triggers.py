"""Watchers: one fires when the version behind an alias of the registry changes, one when there is enough new data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fsspec
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


class NewDataTrigger(BaseEventTrigger):
    """Fire when a folder or bucket holds so many files more than when it was last told.

    What lies there when the watch begins is not new. Files are counted until their number stays the same, so that a
    copy under way is not taken for whole. Files whose names begin with a dot do not count.

    :param address: a folder, or what fsspec reads: `s3://bucket/folder` wants s3fs beside Airflow.
    :param minimum: how many new files are worth a retrain.
    :param poll_seconds: how often to count.
    """

    def __init__(self, address: str, minimum: int, poll_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # Airflow's
        self.address = address
        self.minimum = minimum
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow stores to make this trigger again."""
        arguments = {"address": self.address, "minimum": self.minimum, "poll_seconds": self.poll_seconds}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever."""
        known, counted = await self._known(), None
        while True:
            before, counted = counted, await asyncio.to_thread(self._count)
            new = 0 if known is None or counted is None else counted - known
            if counted and counted == before and new >= self.minimum:
                yield TriggerEvent({"new": new, "address": self.address})
            if counted and counted == before and (known is None or new < 0 or new >= self.minimum):
                known = counted
                await self._remember(known)
            await asyncio.sleep(self.poll_seconds)

    async def _known(self) -> int | None:
        """How many files there were when it was last told."""
        found = await self.asset_state_store.aget(self._key) if self.asset_state_store is not None else None
        return found if isinstance(found, int) else None

    async def _remember(self, files: int) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(self._key, files)

    @property
    def _key(self) -> str:
        return f"files in {self.address}"

    def _count(self) -> int | None:
        """Files there, or None if nobody can tell; an empty mount point is no data either."""
        try:
            filesystem, path = fsspec.url_to_fs(self.address, use_listings_cache=False)
            return sum(not Path(name).name.startswith(".") for name in filesystem.find(path))
        except (OSError, ImportError, ValueError) as error:
            self.log.warning("cannot count the files in %s: %s", self.address, error)
            return None
