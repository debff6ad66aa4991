"""What a client does wrong is told as such, in the engine's own server: `--middleware serving.refusals.KnownFaults`.

vLLM answers some of it with 500, which reads as a fault of the engine: clients ask again, and alerts count it.
"""

from __future__ import annotations

import json
from http import HTTPStatus

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


async def _refuse(send: Send, why: str) -> None:
    """An error in OpenAI's form."""
    error = {"message": why, "type": "BadRequestError", "param": None, "code": HTTPStatus.BAD_REQUEST}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": HTTPStatus.BAD_REQUEST, "headers": headers})
    await send({"type": "http.response.body", "body": body})
