"""What the engine refuses is answered as refused, in its own server: `vllm serve --middleware serving.refusals.NAME`.

Of vLLM itself some refusals are a 500, which reads as a fault of the engine, or a 200 without an answer.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.caddyfile import PATHS

LOCAL_FILE = "Cannot load local files"
"""How vLLM begins when it refuses to open one."""


class KnownFaults:
    """The middleware that answers 400 where vLLM lets an error escape that the request caused; nothing was decoded."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; whatever else escapes is the engine's fault."""
        try:
            await self._app(scope, receive, send)
        except Image.DecompressionBombError:
            await _refuse(send, "an image has more pixels than are ever decoded")
        except RuntimeError as error:
            if not str(error).startswith(LOCAL_FILE):
                raise
            await _refuse(send, "an image is taken as a data URL alone, never from a file")


class StreamsThatBegin:
    """The middleware that answers an error with its status, where vLLM would send it as the first event of a 200.

    So it tells a streamed request that its queue is full. A stream's head waits for the first event, not for more.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold back the head of a stream until it has begun; what follows an error is dropped."""
        held: Message | None = None
        refused = False

        async def say(message: Message) -> None:
            nonlocal held, refused
            if message["type"] == "http.response.start" and _streams(message):
                held = message
                return
            head, held = held, None
            if head is not None and (error := _first_event_s_error(message.get("body", b""))):
                refused = True
                await _answer(send, error)
            for part in () if refused else (message,) if head is None else (head, message):
                await send(part)

        await self._app(scope, receive, say)


class NamedModel:
    """The middleware that refuses a request which names no model: vLLM has the bare base answer it, not the adapter."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of what the front lets through, and pass it on whole."""
        if scope["type"] != "http" or scope["path"] not in PATHS["POST"]:
            await self._app(scope, receive, send)
            return
        whole = await _whole(receive)
        if whole["type"] == "http.request" and not _names_model(whole["body"]):
            await _refuse(send, "the request names no model; GET /v1/models lists them")
            return
        left = [whole]

        async def hear() -> Message:
            return left.pop() if left else await receive()

        await self._app(scope, hear, send)


async def _whole(receive: Receive) -> Message:
    """The request in one message, or that the client has gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}


def _names_model(body: bytes) -> bool:
    """Whether it does, or is no request at all, which the engine itself tells the client."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return True
    return not isinstance(asked, dict) or bool(asked.get("model"))


def _streams(head: Message) -> bool:
    kinds = (value for name, value in head["headers"] if name.lower() == b"content-type")
    return head["status"] == HTTPStatus.OK and any(kind.startswith(b"text/event-stream") for kind in kinds)


def _first_event_s_error(body: bytes) -> dict[str, Any] | None:
    """The error that a stream begins with, with the status that it should have had as its `code`."""
    first = body.partition(b"\n")[0]
    if not first.startswith(b'data: {"error"'):
        return None
    error: dict[str, Any] = json.loads(first.removeprefix(b"data: "))["error"]
    return {**error, "code": error["code"] if error.get("code") in range(400, 600) else 500}


async def _refuse(send: Send, why: str) -> None:
    error = {"message": why, "type": "BadRequestError", "param": None, "code": int(HTTPStatus.BAD_REQUEST)}
    await _answer(send, error)


async def _answer(send: Send, error: dict[str, Any]) -> None:
    """An error in OpenAI's form."""
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error["code"], "headers": headers})
    await send({"type": "http.response.body", "body": body})
