"""How long requests have been waiting for one promotion."""

from __future__ import annotations

import time

from pipelines.settings import Settings
from serving import front


class Held:
    """Holds and releases at the front, and adds up the time between."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._since: float | None = None
        self._before = 0.0

    def begin(self) -> None:
        """Let requests wait."""
        front.hold(self._settings)
        self._since = self._since or time.monotonic()

    def end(self) -> None:
        """Let them through."""
        front.release(self._settings)
        self._before, self._since = self.seconds, None

    @property
    def now(self) -> bool:
        """Whether requests wait for this promotion."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """All holds so far, the one that goes on included."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)
