"""Keeps processes alive: whoever dies is started again, and all end together.

One that dies too often is broken, not unlucky; then everything ends, and whoever started us is told.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pipelines.embedded.parts import PartFailed
from pipelines.system import processes

log = logging.getLogger(__name__)

DEATHS, WITHIN_SECONDS = 5, 60.0
"""More deaths of one process than this within so many seconds end all."""


@dataclass
class Ward:
    """A process that is to run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    """Added to ours, of which it gets no secret."""

    folder: Path | None = None
    """That it works in; ours unless told."""

    process: subprocess.Popen[bytes] | None = None
    deaths: deque[float] = field(default_factory=deque)
    """When it died lately, on the monotonic clock."""

    def start(self) -> None:
        """Start it; its output is ours, and it gets SIGTERM when we end in any way."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            env={**processes.inherited(secrets=False), **self.environment},
            cwd=self.folder,
            start_new_session=True,
            preexec_fn=processes.end_with_parent,  # noqa: PLW1509  one system call, no lock
        )

    def look(self) -> None:
        """Start it again if it has died.

        Raises:
            PartFailed: It died too often.
        """
        if self.process is None or (code := self.process.poll()) is None:
            return
        now = time.monotonic()
        self.deaths.append(now)
        while now - self.deaths[0] > WITHIN_SECONDS:
            self.deaths.popleft()
        if len(self.deaths) > DEATHS:
            raise PartFailed(
                f"{self.name} died {len(self.deaths)} times within {WITHIN_SECONDS:.0f} s, the last time with exit "
                f"code {code}; what it said is above"
            )
        log.warning("%s ended with exit code %d; starting it again", self.name, code)
        self.start()


def supervise(wards: Sequence[Ward], interval: float = 0.1) -> NoReturn:
    """Run processes until one dies too often, or we are told to end.

    Args:
        wards: Started in this order, ended in the opposite one.
        interval: Seconds between two looks.

    Raises:
        PartFailed: One died too often.
    """
    with started(wards):
        while True:
            for ward in wards:
                ward.look()
            time.sleep(interval)


@contextmanager
def started(wards: Sequence[Ward]) -> Iterator[None]:
    """Processes for a block, that nobody starts again."""
    try:
        for ward in wards:
            ward.start()
        yield
    finally:
        for ward in reversed(wards):
            if ward.process is not None:
                processes.stop(ward.process.pid, grace_seconds=35)  # Caddy lets requests end for 30
                ward.process.wait()
