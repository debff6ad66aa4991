"""One promoter at a time; a dead one holds no lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import PromotionFailed
from pipelines.settings import Settings


@contextmanager
def deploy_lock(settings: Settings) -> Iterator[None]:
    """Hold the deploy lock while the block runs.

    Raises:
        PromotionFailed: Another process holds it; names that process.
    """
    settings.serving.mkdir(parents=True, exist_ok=True)
    with (settings.serving / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            raise PromotionFailed(f"process {holder} is changing what serves; wait for it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
