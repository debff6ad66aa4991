"""What a person sees of a download: one bar for all files on a terminal, plain lines anywhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

PLAIN_SECONDS = 5.0
"""Between two lines where there is no terminal."""


class TransferProgress:
    """Bytes, bytes per second and the time that is left; several threads may report."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at nothing of `total` bytes."""
        self._total, self._here, self._received = total, 0, 0
        self._clock = clock
        self._began = self._spoken = clock()
        self._lock = threading.Lock()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("downloading"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("downloading", total=total)
        self._bar.start()

    def found(self, size: int) -> None:
        """Count bytes that were there already; negative: that have to come again."""
        with self._lock:
            self._here += size
            self._bar.advance(self._task, size)

    def received(self, size: int) -> None:
        """Count bytes that have just come."""
        with self._lock:
            self._here += size
            self._received += size
            self._bar.advance(self._task, size)
            self._speak(self._clock())

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def _speak(self, now: float) -> None:
        if self._console.is_terminal or now - self._spoken < PLAIN_SECONDS:
            return
        self._spoken = now
        rate = self._received / (now - self._began)
        left = (self._total - self._here) / rate
        figures = f"{self._here / 1e9:.2f} of {self._total / 1e9:.2f} GB  {rate / 1e6:.1f} MB/s  {left:.0f} s left"
        self._console.print(f"downloading  {figures}", highlight=False)
