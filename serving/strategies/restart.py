"""The strategy `restart`: stop the engine that runs, start the other. Always possible, and every other's way back."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import MachineUnfit
from pipelines.settings import Settings
from pipelines.system.processes import port_is_free, wait_until
from serving.engine import VLLM, Engine, start_in_service
from serving.memory import wait_for_room
from serving.probe import ProbeResult
from serving.promotion.deploy_log import Note
from serving.served import Served, running
from serving.strategies.base import prove

STOP_SECONDS = 2
"""For an engine to end by itself. It has no requests then, and the end of its processes frees all that it had."""


PORT_SECONDS = 10
"""For the system to take back the port of processes that were killed."""


class Restart:
    """One engine ends before the other begins: a card has no room for two."""

    name = "restart"

    def __init__(self, settings: Settings, note: Note, program: tuple[str, ...] = VLLM) -> None:
        self._settings = settings
        self._note = note
        self._program = program

    def swap(self, new: Served) -> ProbeResult:
        """Start `new` in place of whatever runs.

        Raises:
            EngineFailed: The card is full, or it died, did not answer in time, or answers otherwise than when measured.
            MachineUnfit: Something else listens on the engine's port.
        """
        for pid, log in running(self._settings).items():
            self._note("stop", f"{log.stem}, process {pid}")
            stop_engine(self._settings, pid, log)
        wait_until(self._port_is_free, PORT_SECONDS, self._port_is_taken, interval=0.05)
        wait_for_room(new.serving, new.hardware)
        log = new.log(self._settings)
        started = start_in_service(new.launch(self._program), self._settings.engine_port, log)
        self._note("start", f"{log.stem}, process {started.pid}")
        started.wait_ready(new.serving.start_seconds)
        return prove(self._settings, self._note, new)

    def _port_is_free(self) -> bool:
        return port_is_free(self._settings.engine_port)

    def _port_is_taken(self) -> MachineUnfit:
        return MachineUnfit(f"port {self._settings.engine_port} is taken by something that is no engine in service")

    def undo(self, old: Served) -> ProbeResult:
        """Start `old` in place of whatever runs; raises as `swap` does."""
        return self.swap(old)


def stop_engine(settings: Settings, pid: int, log: Path) -> None:
    """End an engine in service, or what is left of it."""
    Engine(pid, settings.engine_url, log, ()).stop(STOP_SECONDS)
