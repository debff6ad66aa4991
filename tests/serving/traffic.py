"""Clients that never pause: plain and streamed questions, with images and without, on connections that are kept and on
new ones, through the front; every outcome kept."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

from pipelines.settings import Settings
from pipelines.system.credentials import credential

GREY = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAAK0lEQVR42u3MMREAAAgEoNfkRjeEmwcB"
    "qMlNRyAQCAQCgUAgEAgEAsHzYAFAdAEArKmlZAAAAABJRU5ErkJggg=="
)
"""64 x 64 pixels."""

IMAGE = {"type": "image_url", "image_url": {"url": GREY}}

PADDING = "x" * 20_000
"""Bodies are as large as small pictures."""

LOST = re.compile(r"|abort|error|stream cut|stream error .*|status \d+|\w+(Error|Timeout)\(.*\)", re.DOTALL)
"""No text, a reason to finish that is none, a status, or an exception by its `repr`."""


class Traffic:
    """About `rate` questions a second while the block runs: every fourth one streamed, every third one with an image,
    every fifth one on a connection of its own. Told to come again, a patient client does, after `Retry-After`."""

    def __init__(self, settings: Settings, name: str, rate: float = 20, *, patience: int = 0, **more: object) -> None:
        self._url = settings.front_url
        self._headers = {"Authorization": f"Bearer {credential(settings.state, 'front_key')}"}
        self._body = {"model": name, "user": PADDING, **more}
        self._pause = 1 / rate
        self._patience = patience
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.outcomes: Counter[str] = Counter()
        """How many questions ended with which text, or with what instead of one."""
        self.answered: list[tuple[float, float, str]] = []
        """When each began and ended by the monotonic clock, and its outcome."""

        self.longest_seconds = 0.0
        self.told_to_wait = 0
        """How often a patient client was answered 503 and asked again."""

    def __enter__(self) -> Self:
        self._thread.start()
        time.sleep(0.3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(0.3)
        self._stop.set()
        self._thread.join()

    @property
    def lost(self) -> Counter[str]:
        """The outcomes that are anything but the text of an answer."""
        return Counter({outcome: count for outcome, count in self.outcomes.items() if LOST.fullmatch(outcome)})

    async def _run(self) -> None:
        tasks = []
        async with self.client() as http:
            while not self._stop.is_set():
                tasks.append(asyncio.create_task(self.ask(http, len(tasks))))
                await asyncio.sleep(self._pause)
            await asyncio.gather(*tasks)

    def client(self) -> httpx.AsyncClient:
        """With the front's key, and as many connections as it takes."""
        return httpx.AsyncClient(headers=self._headers, timeout=60, limits=httpx.Limits(max_connections=None))

    async def ask(self, http: httpx.AsyncClient, number: int) -> None:
        """Ask one question, the form of which depends on its number, and keep its outcome."""
        stream = number % 4 == 0
        content = [*([IMAGE] if number % 3 == 0 else []), {"type": "text", "text": "question 1"}]
        headers = {"Connection": "close"} if number % 5 == 0 else {}
        body = {**self._body, "stream": stream, "messages": [{"role": "user", "content": content}]}
        began = time.monotonic()
        try:
            response = await self._answer(http, body, headers)
            outcome = _outcome(response, stream=stream)
        except httpx.HTTPError as error:
            outcome = repr(error)
        self.outcomes[outcome] += 1
        self.answered.append((began, time.monotonic(), outcome))
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    async def _answer(
        self, http: httpx.AsyncClient, body: dict[str, object], headers: dict[str, str]
    ) -> httpx.Response:
        for left in range(self._patience, -1, -1):
            response = await http.post(f"{self._url}/v1/chat/completions", json=body, headers=headers)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or not left:
                break
            self.told_to_wait += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
        return response


def _outcome(response: httpx.Response, *, stream: bool) -> str:
    if response.status_code != httpx.codes.OK:
        return f"status {response.status_code}"
    if not stream:
        choice = response.json()["choices"][0]
        return (
            choice["message"]["content"] if choice["finish_reason"] in {"stop", "length"} else choice["finish_reason"]
        )
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    if events[-1:] != ["[DONE]"]:
        return "stream cut"
    told = [json.loads(event) for event in events[:-1]]
    if errors := [event["error"] for event in told if "error" in event]:
        return f"stream error {errors[0]}"
    return " ".join(event["choices"][0]["delta"].get("content", "") for event in told).strip()
