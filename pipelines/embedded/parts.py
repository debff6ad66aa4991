"""A set of processes that live and die together."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.errors import VlmopsError
from pipelines.system import processes


class PartFailed(VlmopsError):
    """A part did not start, or died; the message ends with its log."""


class Parts:
    """Named processes, each the leader of its own group, each with a log.

    Args:
        logs: Folder of the logs; those of the start before are kept as `.previous.log`.
        environment: Added to this process's environment.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a part that is to run until it is stopped."""
        log = self._log(name)
        if log.is_file():
            log.replace(log.with_suffix(".previous.log"))
        self._running[name] = processes.start(command, log, self._environment)

    def run(self, name: str, command: Sequence[str], seconds: float) -> None:
        """Run a part that is to end by itself, while the others are watched.

        Raises:
            PartFailed: It failed or took longer, or another part died.
        """
        self.start(name, command)
        process = self._running.pop(name)
        try:
            self.wait(lambda: process.poll() is not None, seconds, f"{name} to end")
        finally:
            processes.stop(process.pid)
        if process.wait() != 0:
            raise PartFailed(f"{name} ended with exit code {process.returncode}:\n{processes.tail(self._log(name))}")

    def check(self) -> None:
        """Raise PartFailed if a part has died."""
        for name, process in self._running.items():
            if process.poll() is not None:
                end = processes.tail(self._log(name))
                raise PartFailed(f"{name} ended with exit code {process.returncode}:\n{end}\n({self._log(name)})")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until a condition holds while every part lives.

        Raises:
            PartFailed: It did not hold before the deadline, or a part died.
        """

        def holds() -> bool:
            self.check()
            return condition()

        logs = f"the logs are in {self._logs}"
        processes.wait_until(holds, seconds, lambda: PartFailed(f"waited {seconds:.0f} s for {what}; {logs}"))

    def stop(self, grace_seconds: float) -> None:
        """Stop all at once; who does not end within the grace is killed."""
        if not self._running:
            return
        with ThreadPoolExecutor(len(self._running)) as threads:
            list(threads.map(lambda p: processes.stop(p.pid, grace_seconds), self._running.values()))
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
