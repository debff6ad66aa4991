"""Clients that never pause: plain and streamed questions through the front, every outcome kept."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx

from pipelines.settings import Settings
from pipelines.system.credentials import credential

PADDING = "x" * 20_000
"""Bodies are as large as small pictures."""


class Traffic:
    """About `rate` questions a second while the block runs, every fourth one streamed."""

    def __init__(self, settings: Settings, name: str, rate: float = 20) -> None:
        self._url = settings.front_url
        self._headers = {"Authorization": f"Bearer {credential(settings.state, 'front_key')}"}
        self._name = name
        self._pause = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.outcomes: Counter[str] = Counter()
        """How many questions ended with which text, or with what instead of one."""
        self.longest_seconds = 0.0

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

    async def _run(self) -> None:
        tasks = []
        async with httpx.AsyncClient(
            headers=self._headers, timeout=60, limits=httpx.Limits(max_connections=None)
        ) as http:
            while not self._stop.is_set():
                tasks.append(asyncio.create_task(self._one(http, stream=len(tasks) % 4 == 0)))
                await asyncio.sleep(self._pause)
            await asyncio.gather(*tasks)

    async def _one(self, http: httpx.AsyncClient, *, stream: bool) -> None:
        content = [{"type": "text", "text": "question 1"}]
        body = {
            "model": self._name,
            "stream": stream,
            "user": PADDING,
            "messages": [{"role": "user", "content": content}],
        }
        began = time.monotonic()
        try:
            response = await http.post(f"{self._url}/v1/chat/completions", json=body)
            outcome = _outcome(response, stream=stream)
        except httpx.HTTPError as error:
            outcome = repr(error)
        self.outcomes[outcome] += 1
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)


def _outcome(response: httpx.Response, *, stream: bool) -> str:
    if response.status_code != httpx.codes.OK:
        return f"status {response.status_code}"
    if not stream:
        choice = response.json()["choices"][0]
        return choice["message"]["content"] if choice["finish_reason"] == "stop" else choice["finish_reason"]
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    if events[-1:] != ["[DONE]"]:
        return "stream cut"
    return " ".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]).strip()
