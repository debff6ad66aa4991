"""Samples of what is asked, taken in the engine's own server: `vllm serve --middleware serving.monitor_tap.Tap`.

A request that was not picked passes at the cost of one random number. One that was, one a second at most, keeps its
body and its answer in memory until it is answered, as the server does anyway; then a thread takes numbers of it, and
lets go of both. No image, no text and no key's name is kept: `pipelines/monitoring/samples.py` has all that is. Only
requests that came through the front count: probes and measurements carry no key's name.

Whatever goes wrong here, the request goes on.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.config_file import load_config
from pipelines.config_monitoring import Inputs
from pipelines.errors import BadInput
from pipelines.monitoring.place import Place
from pipelines.monitoring.samples import Sample, image_facts, refused, schema_valid
from pipelines.settings import Settings
from serving.keys_service import NAME_HEADER

PATH = "/v1/chat/completions"
SPACING_SECONDS = 1.0
ANSWER_BYTES = 1_000_000
"""A longer answer is let go of."""

SAMPLING_FAULTS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
"""What a body that we do not know may cause, or a disk."""

UNDER_WAY = 8
"""Picked requests at a time: each keeps a body, of which the front lets pass dozens of megabytes."""

WAITING = 2
"""Samples that wait for the thread; further ones are let go of."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass
class Taken:
    """One request while it is under way."""

    request: list[bytes] = field(default_factory=list)
    answer: list[bytes] = field(default_factory=list)
    status: int = 0
    size: int = 0
    """Of the answer so far."""

    ended: bool = False
    """Whether the answer came to its end: a client that hangs up cuts it off."""

    def hear(self, message: Message) -> None:
        """A part of the request."""
        if message["type"] == "http.request":
            self.request.append(message.get("body", b""))

    def say(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.size += len(body := message.get("body", b""))
            if self.size <= ANSWER_BYTES:
                self.answer.append(body)
            self.ended = not message.get("more_body", False)

    @property
    def usable(self) -> bool:
        """Whether it can be read."""
        return self.status == 200 and self.ended and self.size <= ANSWER_BYTES


class Tap:
    """The middleware. What it samples, and where that goes, is the machine's: its config and its home."""

    def __init__(self, app: App, inputs: Inputs | None = None, place: Place | None = None) -> None:
        self._app = app
        self._inputs = _configured() if inputs is None else inputs
        self._place = Place.of(Settings()) if place is None else place
        self._next = 0.0
        self._under_way = 0
        self._taken: queue.Queue[Taken] = queue.Queue(WAITING)
        threading.Thread(target=self._work, daemon=True, name="input samples").start()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and look at some of them afterwards."""
        if not self._picks(scope):
            await self._app(scope, receive, send)
            return
        taken = Taken()

        async def hear() -> Message:
            taken.hear(message := await receive())
            return message

        async def say(message: Message) -> None:
            taken.say(message)
            await send(message)

        self._under_way += 1
        try:
            await self._app(scope, hear, say)
        finally:
            self._under_way -= 1
        if taken.usable and not self._taken.full():
            self._taken.put_nowait(taken)

    def _picks(self, scope: Message) -> bool:
        if scope["type"] != "http" or random.random() >= self._inputs.share or scope["path"] != PATH:
            return False
        now = time.monotonic()
        if (
            now < self._next
            or self._under_way >= UNDER_WAY
            or not any(name == NAME_HEADER.lower().encode() for name, _ in scope["headers"])
        ):
            return False
        self._next = now + SPACING_SECONDS
        return True

    def _work(self) -> None:
        while True:
            taken = self._taken.get()
            try:
                sample = sample_of(b"".join(taken.request), b"".join(taken.answer), self._inputs)
                self._place.inputs.append(sample.model_dump())
            except SAMPLING_FAULTS as error:
                # The engine answered it, in a form that we do not know; of what, no log may say.
                log.warning("a request could not be sampled: %s", type(error).__name__)


def _configured() -> Inputs:
    """The machine's config; an engine starts without it, and samples nothing."""
    try:
        return load_config(Settings().config).monitoring.inputs
    except (BadInput, OSError) as error:
        log.warning("no input is sampled: %s", error)
        return Inputs(share=0)


def sample_of(request: bytes, answer: bytes, inputs: Inputs) -> Sample:
    """The numbers of one request.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, RecursionError: They are not in OpenAI's form.
    """
    asked = json.loads(request)
    text, usage = _streamed(answer) if answer.startswith(b"data:") else _whole(answer)
    wanted = asked.get("response_format") or {}
    schema = wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None
    facts = [image_facts(image) for image in _images(asked["messages"])]
    return Sample(
        time=time.time(),
        images=tuple(fact for fact in facts if fact is not None),
        prompt_tokens=usage.get("prompt_tokens"),
        answer_tokens=usage.get("completion_tokens"),
        schema_valid=None if schema is None else schema_valid(text, schema),
        refused=refused(text, inputs.refusals) if text else None,
    )


def _whole(answer: bytes) -> tuple[str, dict[str, Any]]:
    told = json.loads(answer)
    return told["choices"][0]["message"]["content"] or "", told.get("usage") or {}


def _streamed(answer: bytes) -> tuple[str, dict[str, Any]]:
    """The text and, where the client asked for it, the usage of an answer in parts."""
    parts: list[str] = []
    usage: dict[str, Any] = {}
    for line in answer.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        told = json.loads(line.removeprefix("data: "))
        usage = told.get("usage") or usage
        parts += [choice["delta"].get("content") or "" for choice in told["choices"]]
    return "".join(parts), usage


def _images(messages: list[dict[str, Any]]) -> Iterator[bytes]:
    """The images that were sent; the engine takes none by address."""
    for message in messages:
        content = message["content"]
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image_url":
                _, _, data = part["image_url"]["url"].partition(";base64,")
                try:
                    yield base64.b64decode(data)
                except binascii.Error:
                    continue
