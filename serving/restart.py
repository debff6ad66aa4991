"""The strategy `restart`: stop the engine that runs, start the other. Always possible, and every other's way back."""

from __future__ import annotations

from pathlib import Path

from pipelines.settings import Settings
from serving.deploy_log import Note
from serving.engine import VLLM, Engine, start_in_service
from serving.served import Served, running

STOP_SECONDS = 2
"""For an engine to end by itself. It has no requests then, and the end of its processes frees all that it had."""


class Restart:
    """One engine ends before the other begins: a card has no room for two."""

    def __init__(self, settings: Settings, note: Note, program: tuple[str, ...] = VLLM) -> None:
        self._settings = settings
        self._note = note
        self._program = program

    def swap(self, new: Served) -> None:
        """Start `new` in place of whatever runs.

        Raises:
            EngineFailed: It died or did not answer in time.
            MachineUnfit: Something else listens on the engine's port.
        """
        for pid, log in running(self._settings).items():
            self._note("stop", f"{log.stem}, process {pid}")
            stop_engine(self._settings, pid, log)
        log = new.log(self._settings)
        started = start_in_service(new.launch(self._program), self._settings.engine_port, log)
        self._note("start", f"{log.stem}, process {started.pid}")
        started.wait_ready(new.serving.start_seconds)

    def undo(self, old: Served) -> None:
        """Start `old` in place of whatever runs; raises as `swap` does."""
        self.swap(old)


def stop_engine(settings: Settings, pid: int, log: Path) -> None:
    """End an engine in service, or what is left of it."""
    Engine(pid, settings.engine_url, log, ()).stop(STOP_SECONDS)
