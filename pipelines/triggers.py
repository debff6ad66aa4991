"""Watchers: one fires when the version behind an alias of the registry changes, one when there is enough new data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import httpx
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem

from pipelines.config_file import load_config
from pipelines.settings import RegistryLogin
from pipelines.system.redact import redacted

HANDED_ON_SECONDS = 5.0
"""Airflow takes events off a watcher once a second. What is remembered before that is lost with a triggerer that ends,
or with a database that is away just then; told twice is harmless, never told is not."""

NO_VERSION = 0
"""What is behind an alias that is not there; MLflow counts from 1."""


class _Watcher(BaseEventTrigger):
    """Says once that what it watches does not answer, and once that it does again."""

    _answers = True

    def _say(self, what: str, *, answers: bool, why: object = None) -> None:
        if answers != self._answers:
            state = "answers again" if answers else f"does not answer ({why}); what changes will be seen when it does"
            self.log.warning("%s %s", redacted(what), redacted(state))
            self._answers = answers


class RegistryAliasTrigger(_Watcher):
    """Fire when an alias points to another version than the one that was last told.

    Level-triggered: what was told last is remembered in Airflow's asset state, so that a restart loses no move. An
    alias that was taken away and put back is told again, also on the same version: a promotion that failed may have
    taken it away. A registry that does not answer is said once, and asked again.

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
        told = (await store.aget(key) if store is not None else None) or NO_VERSION
        async with httpx.AsyncClient(base_url=self.tracking_uri, headers=RegistryLogin().headers, timeout=10) as http:
            while True:
                version = await self._version(http, model)
                if version is not None and version != told:
                    if version != NO_VERSION:
                        facts = {"name": model, "alias": self.alias, "version": version}
                        yield TriggerEvent(facts)  # type: ignore[no-untyped-call]  # Airflow's
                        await asyncio.sleep(HANDED_ON_SECONDS)
                    told = version
                    if store is not None:
                        await store.aset(key, version)
                await asyncio.sleep(self.poll_seconds)

    async def _version(self, http: httpx.AsyncClient, model: str) -> int | None:
        """The version behind the alias, NO_VERSION where there is none, None where the registry does not answer."""
        query = {"name": model, "alias": self.alias}
        registry = f"registry at {self.tracking_uri}"
        try:
            reply = await http.get("/api/2.0/mlflow/registered-models/alias", params=query)
            missing = _is_missing(reply)
            version = NO_VERSION if missing else int(reply.raise_for_status().json()["model_version"]["version"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:  # also a page of a proxy's
            self._say(registry, answers=False, why=error)
            return None
        self._say(registry, answers=True)
        return version


def _is_missing(reply: httpx.Response) -> bool:
    """Whether MLflow itself says that there is no such model or alias; a proxy before it may say 404 too."""
    refused = reply.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.NOT_FOUND)
    return refused and reply.json()["error_code"] in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@dataclass(frozen=True)
class Contents:
    """What lies somewhere; the same twice in a row: nothing is on its way."""

    files: int
    nbytes: int
    place: tuple[int, ...] = ()
    """Device and inode of a folder, by which one that was emptied is told from a mount point without its disk."""


def contents(address: str) -> Contents:
    """Count the files of a folder or bucket, with their bytes; names that begin with a dot, and what is below, do not
    count.

    Raises:
        OSError, BotoCoreError: Something in it cannot be read, or vanished meanwhile.
        ImportError, ValueError: Nothing reads such an address.
    """
    filesystem, path = fsspec.url_to_fs(address, use_listings_cache=False)
    if isinstance(filesystem, LocalFileSystem):
        return _folder(path)
    found = filesystem.find(path, detail=True)
    sizes = [fact["size"] or 0 for name, fact in found.items() if "/." not in name[len(path) :]]
    return Contents(len(sizes), sum(sizes))


def _folder(path: str) -> Contents:
    # Not fsspec's: to it a folder that it may not read is an empty one.
    at, files, nbytes = Path(path).stat(), 0, 0
    for folder, folders, names in os.walk(path, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        files += len(shown)
        nbytes += sum(Path(folder, name).lstat().st_size for name in shown)
    return Contents(files, nbytes, (at.st_dev, at.st_ino))


def _fail(error: OSError) -> NoReturn:
    raise error


class NewDataTrigger(_Watcher):
    """Fire when a folder or bucket holds so many files more than when it was last told.

    What lies there when the watch begins is not new. Files are counted until their number and their bytes stay the
    same, so that a copy under way is not taken for whole. Every look lists them all: let it be where data arrives, not
    where all of it is kept.

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
        known, before = await self._known(), None
        place: tuple[int, ...] = ()
        while True:
            seen = await self._look()
            if seen is not None and seen == before and not (known and _is_away(seen, place)):
                new = 0 if known is None else seen.files - known
                if new >= self.minimum:
                    told = {"new": new, "address": redacted(self.address)}
                    yield TriggerEvent(told)  # type: ignore[no-untyped-call]  # Airflow's
                    await asyncio.sleep(HANDED_ON_SECONDS)
                if known is None or new < 0 or new >= self.minimum:
                    known = seen.files
                    await self._remember(known)
                place = seen.place
            before = seen
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

    async def _look(self) -> Contents | None:
        """What is there, or None if nobody can tell."""
        try:
            seen = await asyncio.to_thread(contents, self.address)
        except (OSError, ImportError, ValueError, BotoCoreError) as error:
            self._say(f"data in {self.address}", answers=False, why=error)
            return None
        self._say(f"data in {self.address}", answers=True)
        return seen


def _is_away(seen: Contents, place: tuple[int, ...]) -> bool:
    """Whether nothing is there because it is another folder than the one that had something: its disk is away."""
    return seen.files == 0 and seen.place != place
