"""Samples of what is asked: taken of clients' requests alone, numbers alone, and never at a request's expense."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.config_monitoring import Inputs
from pipelines.monitoring.place import Place
from pipelines.system.processes import wait_until
from serving.monitor_tap import PATH, UNDER_WAY, Tap, sample_of

ALL = Inputs(share=1)
SECRET = "the patient's name is Miriam"
KEY = (b"vlmops-key", b"team-a")


def request(**more: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (400, 200), (255, 255, 255)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": SECRET}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **more}).encode()


def answer(text: str = "A fracture.") -> bytes:
    usage = {"prompt_tokens": 91, "completion_tokens": 4}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


def stream(*parts: str) -> bytes:
    lines = [json.dumps({"choices": [{"delta": {"content": part}}]}) for part in parts]
    lines.append(json.dumps({"choices": [], "usage": {"prompt_tokens": 91, "completion_tokens": 2}}))
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


class Engine:
    """The application behind the middleware."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.body = body
        self.status = status
        self.heard = b""

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.heard += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        half = len(self.body) // 2
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await send({"type": "http.response.body", "body": self.body[half:], "more_body": False})


def pass_through(
    tap: Tap, body: bytes, *, path: str = PATH, headers: tuple[tuple[bytes, bytes], ...] = (KEY,)
) -> bytes:
    """Ask once; what the client gets."""
    got: list[bytes] = []
    parts = [body[:100], body[100:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        got.append(message.get("body", b""))

    asyncio.run(tap({"type": "http", "path": path, "headers": headers}, receive, send))
    return b"".join(got)


def kept(place: Place, wanted: int) -> list[dict[str, Any]]:
    def rows() -> list[dict[str, Any]]:
        return list(place.inputs.since(datetime.fromtimestamp(0, UTC)))

    wait_until(lambda: len(rows()) >= wanted, 30, lambda: AssertionError(f"{len(rows())} samples"), 0.02)
    return rows()


def test_a_request_passes_unchanged_and_leaves_numbers_alone(tmp_path: Path) -> None:
    engine = Engine(answer())
    assert pass_through(Tap(engine, ALL, Place(tmp_path)), request()) == answer()
    assert engine.heard == request()
    (row,) = kept(Place(tmp_path), 1)
    assert abs(row.pop("time") - time.time()) < 60
    assert row == {
        "images": [{"megapixels": 0.08, "aspect": 2.0, "brightness": 1.0}], "prompt_tokens": 91, "answer_tokens": 4,
        "schema_valid": None, "refused": False,
    }  # fmt: skip
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for private in (b"Miriam", b"fracture", b"team-a", b"base64"):
        assert private not in left


def test_a_streamed_answer_is_read_as_a_whole_one() -> None:
    sample = sample_of(request(), stream("I'm ", "sorry, no."), ALL)
    assert (sample.refused, sample.prompt_tokens, sample.answer_tokens) == (True, 91, 2)


def test_an_answer_is_held_against_its_schema() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["a"]}}}
    assert sample_of(request(response_format=wanted), answer('{"a": 1}'), ALL).schema_valid is True
    assert sample_of(request(response_format=wanted), answer('{"a": '), ALL).schema_valid is False
    assert sample_of(request(), answer('{"a": 1}'), ALL).schema_valid is None


@pytest.mark.parametrize(("path", "headers"), [
    (PATH, ()), (PATH, ((b"x-request-id", b"probe"),)), ("/v1/models", (KEY,)), ("/v1/completions", (KEY,)),
])  # fmt: skip
def test_probes_and_whatever_else_is_no_question_of_a_client_are_not_sampled(
    tmp_path: Path, path: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    tap = Tap(Engine(answer()), ALL, Place(tmp_path))
    assert pass_through(tap, request(), path=path, headers=headers) == answer()
    assert pass_through(tap, request()) == answer()  # this one is
    assert len(kept(Place(tmp_path), 1)) == 1


def test_one_a_second_at_most(tmp_path: Path) -> None:
    tap = Tap(Engine(answer()), ALL, Place(tmp_path))
    for _ in range(20):
        pass_through(tap, request())
    assert len(kept(Place(tmp_path), 1)) == 1


def test_a_share_of_nothing_is_nothing(tmp_path: Path) -> None:
    tap = Tap(Engine(answer()), Inputs(share=0), Place(tmp_path))
    assert pass_through(tap, request()) == answer()
    time.sleep(0.2)
    assert not (tmp_path / "inputs").exists()


@pytest.mark.parametrize(("asked", "body", "status"), [
    (b"not JSON", answer(), 200), (b"[]", answer(), 200), (b'{"messages": 3}', answer(), 200),
    (request(), b"<html>", 200), (request(), b'{"choices": []}', 200), (request(), b"data: {", 200),
    (request(), answer(), 500), (request(), b"x" * 2_000_000, 200),
    (b'{"messages": [{"content": [3]}]}', answer(), 200),
])  # fmt: skip
def test_what_has_another_form_is_answered_all_the_same(tmp_path: Path, asked: bytes, body: bytes, status: int) -> None:
    engine = Engine(body, status)
    tap = Tap(engine, ALL, Place(tmp_path))
    assert pass_through(tap, asked) == body
    time.sleep(0.05)
    tap._next = 0.0
    engine.body, engine.status = answer(), 200
    assert pass_through(tap, request()) == answer()  # and the thread lives
    assert len(kept(Place(tmp_path), 1)) == 1


def test_a_full_disk_costs_the_sample_alone(tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("in the way")
    tap = Tap(Engine(answer()), ALL, Place(tmp_path))
    assert pass_through(tap, request()) == answer()
    time.sleep(0.2)
    (tmp_path / "inputs").unlink()
    tap._next = 0.0
    assert pass_through(tap, request()) == answer()
    assert len(kept(Place(tmp_path), 1)) == 1


def test_an_answer_that_the_client_did_not_wait_for_is_no_sample(tmp_path: Path) -> None:
    class HungUp(Engine):
        async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
            while (await receive())["more_body"]:
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})

    tap = Tap(HungUp(stream('{"price": ')), ALL, Place(tmp_path))
    pass_through(tap, request())
    tap._app, tap._next = Engine(answer()), 0.0
    pass_through(tap, request())
    assert len(kept(Place(tmp_path), 1)) == 1
    assert kept(Place(tmp_path), 1)[0]["answer_tokens"] == 4


def test_few_requests_are_held_at_a_time_and_each_that_fails_makes_room(tmp_path: Path) -> None:
    class Failing(Engine):
        async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
            raise ConnectionError

    tap = Tap(Failing(b""), ALL, Place(tmp_path))
    for _ in range(2 * UNDER_WAY):
        tap._next = 0.0
        with pytest.raises(ConnectionError):
            pass_through(tap, request())
    scope = {"type": "http", "path": PATH, "headers": (KEY,)}
    tap._next = 0.0
    assert tap._picks(scope)
    tap._under_way, tap._next = UNDER_WAY, 0.0
    assert not tap._picks(scope)


@pytest.mark.parametrize("wanted", [{"$ref": "#/$defs/nowhere"}, {"pattern": "^(a+)+$"}])
def test_no_schema_of_a_client_ends_the_sampling(tmp_path: Path, wanted: dict[str, str]) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}
    tap = Tap(Engine(answer('"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"')), ALL, Place(tmp_path))
    for wanted_rows in (1, 2):
        tap._next = 0.0
        pass_through(tap, request(response_format=schema))
        assert kept(Place(tmp_path), wanted_rows)[-1]["schema_valid"] is None


@pytest.mark.parametrize("config", ["broken.yaml", "a folder", "missing.yaml"])
def test_an_engine_starts_whatever_the_config_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    (tmp_path / "broken.yaml").write_text("nothing: [")
    (tmp_path / "a folder").mkdir()
    monkeypatch.setenv("VLMOPS_CONFIG", str(tmp_path / config))
    monkeypatch.setenv("VLMOPS_HOME", str(tmp_path / "home"))
    assert pass_through(Tap(Engine(answer())), request()) == answer()
