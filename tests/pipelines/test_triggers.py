"""The watcher of a registry alias, against a small registry of our own over HTTP."""

from __future__ import annotations

from tests import airflow_home  # noqa: F401  # isort: skip  before airflow is imported

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

from pipelines.settings import ROOT
from pipelines.system.processes import free_port
from pipelines.triggers import RegistryAliasTrigger


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
async def events(trigger: RegistryAliasTrigger) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
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
