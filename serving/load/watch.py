"""What an engine counts while it is under load."""

from __future__ import annotations

from dataclasses import dataclass

from serving.client import metrics

PATIENCE = 60.0
"""Seconds for an answer: an engine under full load may be slow to tell its counters."""


@dataclass(frozen=True)
class Watched:
    """What happened between two moments."""

    kv_usage_peak: float
    preemptions: int
    lost: int
    restarted: bool


class Watch:
    """Looks at the counters now, and whenever it is asked to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._first = self._last = metrics(url, PATIENCE)
        self._kv_usage_peak = 0.0

    def look(self) -> None:
        """Look again."""
        self._last = metrics(self._url, PATIENCE)
        self._kv_usage_peak = max(self._kv_usage_peak, self._last.kv_usage)

    def end(self) -> Watched:
        """Look a last time; what happened since the first."""
        self.look()
        return Watched(
            kv_usage_peak=self._kv_usage_peak,
            preemptions=self._last.preemptions - self._first.preemptions,
            lost=self._last.lost - self._first.lost,
            restarted=self._last.started != self._first.started,
        )
