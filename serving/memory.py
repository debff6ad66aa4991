"""Peak memory of an engine's processes, sampled while it works."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

from serving.engine import group


class PeakMemory:
    """Watches a process group in a thread while the block runs."""

    def __init__(self, leader: int, interval_seconds: float = 0.5) -> None:
        self._leader = leader
        self._interval = interval_seconds
        self._peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def gib(self) -> float:
        """The largest sum of resident memory seen so far; pages that the processes share count for each of them."""
        return self._peak_bytes / 2**30

    def _watch(self) -> None:
        while not self._done.is_set():
            self._peak_bytes = max(self._peak_bytes, sum(map(_resident_bytes, group(self._leader))))
            self._done.wait(self._interval)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
