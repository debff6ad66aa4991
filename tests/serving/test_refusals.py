"""What a client is told about its own faults. That vLLM words them so is held against it in `security/`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from serving.refusals import KnownFaults, NamedModel, StreamsThatBegin

CHAT = "/v1/chat/completions"
LOCAL = RuntimeError("Cannot load local files without `--allowed-local-media-path`.")
BOMB = Image.DecompressionBombError("Image size (900000000 pixels) exceeds limit of 178956970 pixels")


def failing(error: Exception) -> ASGIApp:
    async def app(*_: object) -> None:
        raise error

    return app


async def echo(request: Request) -> Response:
    return Response(await request.body())


ECHO = Starlette(routes=[Route(path, echo, methods=["POST"]) for path in (CHAT, "/v1/load_lora_adapter")])


def asked(app: ASGIApp, body: bytes = b"", path: str = CHAT) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as http:
            return await http.post(path, content=body)

    return asyncio.run(ask())


@pytest.mark.parametrize(("error", "told"), [(BOMB, "more pixels"), (LOCAL, "data URL alone")])
def test_a_known_fault_of_the_client_is_told_as_such(error: Exception, told: str) -> None:
    answer = asked(KnownFaults(failing(error)))
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == 400
    assert str(error) not in answer.text


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("x")])
def test_a_fault_of_the_engine_stays_one(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        asked(KnownFaults(failing(error)))


def test_what_is_answered_passes_as_it_is() -> None:
    assert asked(KnownFaults(ECHO), b"anything").content == b"anything"


def streaming(*events: bytes) -> ASGIApp:
    async def endpoint(_: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for event in events:
                yield b"data: " + event + b"\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    return StreamsThatBegin(Starlette(routes=[Route(CHAT, endpoint, methods=["POST"])]))


FULL = b'{"error": {"message": "The engine is currently busy", "type": "Service Unavailable", "code": 503}}'


def test_a_stream_that_begins_with_an_error_is_that_error() -> None:
    answer = asked(streaming(FULL, b"[DONE]"))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
    assert answer.json() == json.loads(FULL)


def test_an_error_without_a_status_is_the_engine_s() -> None:
    assert asked(streaming(b'{"error": {"message": "?", "code": null}}')).status_code == 500


@pytest.mark.parametrize("events", [(b'{"choices": []}', FULL, b"[DONE]"), (b"[DONE]",), ()])
def test_a_stream_that_has_begun_passes_part_by_part(events: tuple[bytes, ...]) -> None:
    answer = asked(streaming(*events))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.content == b"".join(b"data: " + event + b"\n\n" for event in events)


def test_what_is_no_stream_passes_as_it_is() -> None:
    assert asked(StreamsThatBegin(ECHO), b'data: {"error": {}}').content == b'data: {"error": {}}'


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}, {"messages": [{"content": '"model": "x"'}]}])
def test_a_request_that_names_no_model_is_refused(body: dict[str, object]) -> None:
    answer = asked(NamedModel(ECHO), json.dumps(body).encode())
    assert answer.status_code == 400
    assert "GET /v1/models" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b'{"model": "digits"}', b"no JSON", b"[1]", b"", b"[" * 200_000])
def test_any_other_request_reaches_the_engine_as_it_was(body: bytes) -> None:
    answer = asked(NamedModel(ECHO), body)
    assert (answer.status_code, answer.content) == (200, body)


def test_what_only_the_machine_itself_may_ask_for_names_no_model() -> None:
    assert asked(NamedModel(ECHO), b'{"lora_name": "digits"}', "/v1/load_lora_adapter").status_code == 200


def test_a_request_in_parts_is_passed_on_whole() -> None:
    async def sent() -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            for part in (b'{"mo', b'del": "digits", "x": "', b"a" * 100_000, b'"}'):
                yield part

        async with httpx.AsyncClient(transport=httpx.ASGITransport(NamedModel(ECHO)), base_url="http://engine") as http:
            return (await http.post(CHAT, content=chunks())).content

    assert asyncio.run(sent()) == b'{"model": "digits", "x": "' + b"a" * 100_000 + b'"}'
