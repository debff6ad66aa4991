"""What a person sees of an export: bytes, bytes per second and the time that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal."""


@contextmanager
def passing(title: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told of bytes that went by.

    Args:
        title: What is done.
        total: Bytes in all.
        done: Bytes that an earlier attempt has done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total, done).advance
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda size: bar.advance(task, size)


class _Lines:
    """A line now and then."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done, self._here = title, total, done, 0
        self._began = self._spoken = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        self._here += size
        now = time.monotonic()
        if now - self._spoken < PLAIN_SECONDS:
            return
        self._spoken = now
        rate = self._here / (now - self._began)
        left = (self._total - self._done) / rate
        share = f"{self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        log.info("%s: %s, %.0f MB/s, %.0f s left", self._title, share, rate / 1e6, left)
