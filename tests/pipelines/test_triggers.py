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

import fsspec
import pytest
from botocore.exceptions import NoCredentialsError

from pipelines import triggers
from pipelines.settings import ROOT
from pipelines.system.processes import free_port
from pipelines.triggers import NO_VERSION, Contents, NewDataTrigger, RegistryAliasTrigger, contents


class Registry:
    """Answers for one alias, as MLflow does."""

    def __init__(self, port: int = 0) -> None:
        self.version: int | None = None
        self.page: tuple[int, bytes] | None = None  # of a proxy before it
        self.asked: list[str] = []
        self.wants: str | None = None  # as whom one must ask
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.wants not in (None, self.headers["Authorization"]):
                    self.send_error(401)
                    return
                found = outer.version is not None
                body = (
                    {"model_version": {"version": str(outer.version)}}
                    if found
                    else {"error_code": "INVALID_PARAMETER_VALUE"}
                )
                status, said = outer.page or (200 if found else 400, json.dumps(body).encode())
                self.send_response(status)
                self.end_headers()
                self.wfile.write(said)

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


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes an event off has it at once."""
    monkeypatch.setattr(triggers, "HANDED_ON_SECONDS", 0.0)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def watcher(url: str, store: Store) -> RegistryAliasTrigger:
    trigger = RegistryAliasTrigger(url, str(ROOT / "configs" / "smoke.yaml"), "approved", 0.02)
    trigger.asset_state_store = store
    return trigger


class Told(asyncio.Queue[dict[str, Any]]):
    """What was told, and how often the watcher has looked."""

    looks = 0


@asynccontextmanager
async def events(trigger: RegistryAliasTrigger | NewDataTrigger) -> AsyncIterator[Told]:
    told = Told()
    name = "_version" if isinstance(trigger, RegistryAliasTrigger) else "_look"
    look = getattr(trigger, name)

    async def counted(*arguments: Any) -> Any:
        seen = await look(*arguments)
        told.looks += 1
        return seen

    async def listen() -> None:
        async for event in trigger.run():
            await told.put(event.payload)

    setattr(trigger, name, counted)
    task = asyncio.create_task(listen())
    try:
        yield told
    finally:
        task.cancel()


async def nothing_comes(told: Told) -> bool:
    """Whether nothing was told of what three more looks saw; the third has been thought over when a fourth is made."""
    end = told.looks + 4
    while told.looks < end:
        await asyncio.sleep(0.01)
    return told.empty()


async def the_next(told: Told) -> dict[str, Any]:
    return await asyncio.wait_for(told.get(), 60)


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


def test_an_alias_that_was_taken_away_and_put_back_is_told_again(registry: Registry) -> None:
    async def story() -> None:
        store = Store()
        registry.version = 3
        async with events(watcher(registry.url, store)) as told:
            assert (await the_next(told))["version"] == 3
            registry.version = None  # the promotion failed, and there was no champion to name instead
            assert await nothing_comes(told)
        assert store["digits@approved"] == NO_VERSION
        registry.version = 3  # the machine was mended, while nobody watched
        async with events(watcher(registry.url, store)) as told:
            assert (await the_next(told))["version"] == 3
            assert await nothing_comes(told)

    asyncio.run(story())


def test_a_triggerer_that_ends_before_its_event_was_taken_tells_it_again(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        store = Store()
        registry.version = 1
        store[f"files in {folder}"] = 10
        for watching in (watcher(registry.url, store), data_watcher(folder, store)):
            with monkeypatch.context() as patch:
                patch.setattr(triggers, "HANDED_ON_SECONDS", 60.0)
                before = dict(store)
                async with events(watching) as told:
                    await the_next(told)
                assert store == before
        async with events(watcher(registry.url, store)) as told:
            assert (await the_next(told))["version"] == 1
        async with events(data_watcher(folder, store)) as told:
            assert (await the_next(told))["new"] == 10

    asyncio.run(story())


@pytest.mark.parametrize(
    ("login", "wanted"),
    [
        ({"USERNAME": "line", "PASSWORD": "hunter2"}, "Basic bGluZTpodW50ZXIy"),
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"USERNAME": "line", "PASSWORD": "hunter2", "TOKEN": "t0ken"}, "Basic bGluZTpodW50ZXIy"),
    ],
)
def test_a_registry_with_a_login_is_asked_as_mlflow_would(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, login: dict[str, str], wanted: str
) -> None:
    for name, value in login.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)

    async def story() -> None:
        registry.version, registry.wants = 3, wanted
        async with events(watcher(registry.url, Store())) as told:
            assert (await the_next(told))["version"] == 3

    asyncio.run(story())


@pytest.mark.parametrize("status", [200, 404])
def test_a_proxys_page_is_no_answer_and_ends_no_watch(registry: Registry, status: int) -> None:
    """Nor does it take the alias away: what was told is not told again when MLflow is back."""

    async def story() -> None:
        registry.version = 2
        async with events(watcher(registry.url, Store())) as told:
            assert (await the_next(told))["version"] == 2
            registry.page = (status, b"<html>Sign in</html>")
            assert await nothing_comes(told)
            registry.page = None
            assert await nothing_comes(told)
            registry.version = 3
            assert (await the_next(told))["version"] == 3

    asyncio.run(story())


def test_an_address_is_said_without_its_password(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        for watching in (
            watcher(f"http://me:hunter2@127.0.0.1:{free_port()}", Store()),
            NewDataTrigger("nosuch://me:hunter2@bucket/folder", minimum=1, poll_seconds=0.02),
        ):
            async with events(watching) as told:
                assert await nothing_comes(told)

    asyncio.run(story())
    said = caplog.text + capsys.readouterr().out
    assert said.count("does not answer") == 2
    assert "hunter2" not in said


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


def test_a_file_that_still_grows_is_waited_for(folder: Path) -> None:
    async def story() -> None:
        async with events(data_watcher(folder, Store())) as told:
            assert await nothing_comes(told)
            add(folder, "a", "b")
            with (folder / "c").open("ab", buffering=0) as copy:
                for _ in range(100):  # faster than it is looked at
                    copy.write(b"x")
                    await asyncio.sleep(0.005)
                assert told.empty()
            assert (await the_next(told))["new"] == 3

    asyncio.run(story())


def test_a_folder_that_begins_empty_or_is_emptied_goes_on_being_watched(tmp_path: Path) -> None:
    async def story() -> None:
        async with events(data_watcher(tmp_path, Store())) as told:
            for _ in range(2):
                assert await nothing_comes(told)
                add(tmp_path, "a", "b", "c")
                assert (await the_next(told))["new"] == 3
                assert await nothing_comes(told)
                for path in tmp_path.iterdir():  # moved to where it is trained on
                    path.unlink()

    asyncio.run(story())


def test_a_part_that_cannot_be_read_is_not_taken_for_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        if str(path).endswith("images"):
            raise PermissionError(13, "refused", path)
        return scan(path)

    scan = triggers.os.scandir

    async def story() -> None:
        async with events(data_watcher(folder, Store())) as told:
            assert await nothing_comes(told)
            with monkeypatch.context() as patch:
                patch.setattr(triggers.os, "scandir", refuse)
                assert await nothing_comes(told)
            assert await nothing_comes(told)

    asyncio.run(story())


def test_what_is_hidden_does_not_count_wherever_it_lies(folder: Path) -> None:
    (folder / ".rsync-partial").mkdir()
    (folder / ".rsync-partial" / "half").write_text("x")
    (folder / "images" / "0.png").write_text("12345")
    seen = contents(str(folder))
    assert (seen.files, seen.nbytes) == (20, 5)


def test_a_bucket_is_counted_and_may_be_emptied() -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe({"/bucket/in/a": b"12", "/bucket/in/sub/b": b"3", "/bucket/in/.part/c": b"4", "/bucket/out/d": b"5"})
    assert contents("memory://bucket/in") == Contents(2, 3)
    assert contents("memory://bucket/none") == Contents(0, 0)

    async def story() -> None:
        trigger = NewDataTrigger("memory://bucket/in", minimum=3, poll_seconds=0.02)
        trigger.asset_state_store = Store({"files in memory://bucket/in": 5})
        async with events(trigger) as told:
            assert await nothing_comes(told)
            bucket.rm("/bucket/in", recursive=True)
            assert await nothing_comes(told)
            bucket.pipe({f"/bucket/in/{number}": b"" for number in range(4)})
            assert (await the_next(told))["new"] == 4

    asyncio.run(story())


def test_a_bucket_that_fails_is_said_once_and_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> Contents:
        raise NoCredentialsError  # no OSError, as most of what boto raises

    async def story() -> None:
        trigger = NewDataTrigger("memory://b", minimum=1, poll_seconds=0.02)
        trigger.asset_state_store = Store({"files in memory://b": 1})
        async with events(trigger) as told:
            with monkeypatch.context() as patch:
                patch.setattr(triggers, "contents", fail)
                assert await nothing_comes(told)
            monkeypatch.setattr(triggers, "contents", lambda _: Contents(3, 3))
            assert (await the_next(told))["new"] == 2

    asyncio.run(story())
    said = caplog.text + capsys.readouterr().out
    assert said.count("does not answer") == said.count("answers again") == 1


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
