"""One promoter at a time; a dead one holds no lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pipelines.errors import PromotionFailed
from pipelines.settings import Settings
from pipelines.system.processes import wait_until

MOMENT_SECONDS = 1.0
"""For who has the lock for a moment, as the supervisor that looks once more before it acts."""


@contextmanager
def deploy_lock(settings: Settings, seconds: float = MOMENT_SECONDS) -> Iterator[None]:
    """Hold the deploy lock while the block runs.

    Args:
        settings: Of this machine.
        seconds: Longest wait for it; 0: as it is now.

    Raises:
        PromotionFailed: Another process holds it; names that process.
    """
    settings.serving.mkdir(parents=True, exist_ok=True)
    with (settings.serving / "lock").open("a+") as lock:
        wait_until(lambda: _taken(lock), seconds, lambda: _held(lock), interval=0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(lock: TextIO) -> PromotionFailed:
    lock.seek(0)
    return PromotionFailed(f"process {lock.read().strip()} is changing what serves; wait for it")
