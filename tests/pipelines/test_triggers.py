"""The watchers: of an alias, against a small registry of our own over HTTP; of new data, in a folder."""

from __future__ import annotations

from tests import airflow_home  # noqa: F401  # isort: skip  before airflow is imported

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from pipelines.settings import ROOT
from pipelines.system.processes import free_port
from pipelines.triggers import NewDataTrigger, RegistryAliasTrigger


class Registry:
    """Answers for one alias, as MLflow does."""

    def __init__(self, port: int = 0) -> None:
        self.version: int | None = None
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                found = outer.version is not None
                body = {"model_version": {"version": str(outer.version)}} if found else {"error_code": "INVALID"}
                self.send_response(200 if found else 400)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Store(dict[str, Any]):
    """Airflow's asset state."""

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def watcher(url: str, store: Store) -> RegistryAliasTrigger:
    trigger = RegistryAliasTrigger(url, str(ROOT / "configs" / "smoke.yaml"), "approved", 0.02)
    trigger.asset_state_store = store
    return trigger


@asynccontextmanager
async def events(trigger: RegistryAliasTrigger | NewDataTrigger) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def listen() -> None:
        async for event in trigger.run():
            await told.put(event.payload)

    task = asyncio.create_task(listen())
    try:
        yield told
    finally:
        task.cancel()


async def nothing_comes(told: asyncio.Queue[dict[str, Any]]) -> bool:
    await asyncio.sleep(0.3)
    return told.empty()


async def the_next(told: asyncio.Queue[dict[str, Any]]) -> dict[str, Any]:
    return await asyncio.wait_for(told.get(), 10)


def test_each_move_is_told_once(registry: Registry) -> None:
    async def story() -> None:
        async with events(watcher(registry.url, Store())) as told:
            assert await nothing_comes(told)  # no such alias yet
            registry.version = 1
            assert await the_next(told) == {"name": "digits", "alias": "approved", "version": 1}
            assert await nothing_comes(told)
            registry.version = 2
            assert (await the_next(told))["version"] == 2
            registry.version = 1
            assert (await the_next(told))["version"] == 1

    asyncio.run(story())
    assert "name=digits&alias=approved" in registry.asked[0]


def test_a_restart_tells_nothing_twice_and_loses_no_move(registry: Registry) -> None:
    async def story() -> None:
        store = Store()
        registry.version = 1
        async with events(watcher(registry.url, store)) as told:
            await the_next(told)
            assert await nothing_comes(told)
        async with events(watcher(registry.url, store)) as told:
            assert await nothing_comes(told)
        registry.version = 2  # while nobody watches
        async with events(watcher(registry.url, store)) as told:
            assert (await the_next(told))["version"] == 2

    asyncio.run(story())


def test_a_registry_that_is_away_is_said_once_and_asked_again(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()

    async def story() -> None:
        async with events(watcher(f"http://127.0.0.1:{port}", Store())) as told:
            assert await nothing_comes(told)
            with Registry(port) as registry:
                registry.version = 3
                assert (await the_next(told))["version"] == 3

    asyncio.run(story())
    said = caplog.text + capsys.readouterr().out  # the one or the other, as Airflow's logging is set up or not
    assert said.count("does not answer") == 1
    assert said.count("answers again") == 1


def test_it_can_be_made_again_from_what_airflow_stores() -> None:
    path, arguments = watcher("http://127.0.0.1:1", Store()).serialize()
    assert path == "pipelines.triggers.RegistryAliasTrigger"
    assert RegistryAliasTrigger(**arguments).serialize() == (path, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data that was there before anybody watched, a hidden file beside it."""
    (tmp_path / "images").mkdir()
    for number in range(20):
        (tmp_path / "images" / f"{number}.png").touch()
    (tmp_path / ".unfinished").touch()
    return tmp_path


def add(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def data_watcher(folder: Path, store: Store) -> NewDataTrigger:
    trigger = NewDataTrigger(str(folder), minimum=3, poll_seconds=0.02)
    trigger.asset_state_store = store
    return trigger


def test_enough_new_files_are_told_once_and_what_was_there_is_not_new(folder: Path) -> None:
    async def story() -> None:
        async with events(data_watcher(folder, Store())) as told:
            assert await nothing_comes(told)
            add(folder, "a", "b", ".hidden")
            assert await nothing_comes(told)
            add(folder, "c")
            assert await the_next(told) == {"new": 3, "address": str(folder)}
            assert await nothing_comes(told)

    asyncio.run(story())


def test_files_that_came_while_nobody_watched_are_new(folder: Path) -> None:
    async def story() -> None:
        store = Store()
        async with events(data_watcher(folder, store)) as told:
            assert await nothing_comes(told)
        add(folder, "a", "b", "c", "d")
        async with events(data_watcher(folder, store)) as told:
            assert (await the_next(told))["new"] == 4
        async with events(data_watcher(folder, store)) as told:
            assert await nothing_comes(told)

    asyncio.run(story())


def test_a_folder_that_is_gone_for_a_while_brings_no_new_data_when_it_is_back(folder: Path) -> None:
    async def story() -> None:
        async with events(data_watcher(folder, Store())) as told:
            assert await nothing_comes(told)
            away = folder.with_name(f"{folder.name}-away")
            folder.rename(away)
            assert await nothing_comes(told)
            folder.mkdir()  # a mount point without its disk
            assert await nothing_comes(told)
            folder.rmdir()
            away.rename(folder)
            assert await nothing_comes(told)

    asyncio.run(story())


def test_files_that_went_are_not_made_up_for_by_as_many_that_come(folder: Path) -> None:
    async def story() -> None:
        async with events(data_watcher(folder, Store())) as told:
            assert await nothing_comes(told)
            for number in range(10):
                (folder / "images" / f"{number}.png").unlink()
            assert await nothing_comes(told)
            add(folder, "a", "b", "c")
            assert (await the_next(told))["new"] == 3

    asyncio.run(story())


def test_a_place_that_nobody_can_read_is_said_and_tells_nothing() -> None:
    async def story() -> None:
        trigger = NewDataTrigger("nosuch://bucket/folder", minimum=1, poll_seconds=0.02)
        async with events(trigger) as told:
            assert await nothing_comes(told)

    asyncio.run(story())


def test_the_data_watcher_can_be_made_again_from_what_airflow_stores(tmp_path: Path) -> None:
    path, arguments = data_watcher(tmp_path, Store()).serialize()
    assert path == "pipelines.triggers.NewDataTrigger"
    assert NewDataTrigger(**arguments).serialize() == (path, arguments)
