"""The cards by NVML. What a card or its driver does not tell is None, never zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pynvml

from pipelines.monitoring.snapshot import Card, GpuState
from serving.engine import group

Owner = Callable[[int], str]
"""Says whose a process is: `engine`, `run`, `other`, or `unknown` for one that cannot be seen from here."""


class Cards:
    """NVML while the block runs. Without a driver there are no cards, and that is no error.

    XIDs are events: only those that happen while the block runs are seen.

    Args:
        nvml: The module `pynvml`; a test has its own.
    """

    def __init__(self, nvml: ModuleType | Any = pynvml) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        self._events: Any = None
        self._xids: dict[int, dict[int, int]] = {}
        self.state: GpuState = "unknown"
        self.why = ""
        self._close = ExitStack()

    @contextmanager
    def opened(self) -> Iterator[Cards]:
        """Open NVML, and close it at the end."""
        with self._close:
            self._open()
            yield self

    def look(self, owner: Owner) -> tuple[Card, ...]:
        """Every card now. Where there were none it is asked again: a driver may come up after us."""
        if not self._handles:
            self._close.close()
            self._open()
        self._hear_events()
        cards = tuple(self._card(index, handle, owner) for index, handle in enumerate(self._handles))
        if cards:
            silent = ", ".join(str(card.index) for card in cards if _silent(card))
            self.state = "unknown" if silent else "cards"
            self.why = (
                f"card {silent} answers nothing, as one that fell off the bus; see `nvidia-smi`" if silent else ""
            )
        return cards

    def _open(self) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
            self.state, self.why = "none", f"no GPU here: {error}"
            return
        except nvml.NVMLError as error:
            self.state, self.why = "unknown", f"NVML does not answer: {error}; see `nvidia-smi`"
            return
        self._close.callback(nvml.nvmlShutdown)
        try:
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            self.state, self.why = "unknown", f"a card does not answer: {error}; see `nvidia-smi`"
            return
        self.state, self.why = ("cards", "") if self._handles else ("none", "no GPU here: the driver sees none")
        self._listen()

    def _listen(self) -> None:
        """Ask to be told of XIDs; cards that cannot tell have none known."""
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return
        self._close.callback(nvml.nvmlEventSetFree, self._events)
        for index, handle in enumerate(self._handles):
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
            except nvml.NVMLError:
                continue
            self._xids[index] = {}

    def _hear_events(self) -> None:
        nvml = self._nvml
        while self._xids:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:  # none is waiting, or a card fell off the bus: then it does not answer either
                return
            index = next((i for i in self._xids if self._same(self._handles[i], event.device)), None)
            if index is not None and event.eventType == nvml.nvmlEventTypeXidCriticalError:
                counts = self._xids[index]
                counts[event.eventData] = counts.get(event.eventData, 0) + 1

    def _same(self, handle: Any, other: Any) -> bool:
        return bool(self._nvml.nvmlDeviceGetIndex(handle) == self._nvml.nvmlDeviceGetIndex(other))

    def _card(self, index: int, handle: Any, owner: Owner) -> Card:
        nvml = self._nvml
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle)
        used = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        processes = self._told(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return Card(
            index=index,
            name=str(self._told(nvml.nvmlDeviceGetName, handle) or "unknown"),
            uuid=str(self._told(nvml.nvmlDeviceGetUUID, handle) or "unknown"),
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization=None if used is None else used.gpu / 100,
            temperature_celsius=self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_watts=_watts(self._told(nvml.nvmlDeviceGetPowerUsage, handle)),
            power_limit_watts=_watts(self._told(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            throttled=self._throttled(self._told(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)),
            ecc_uncorrected=self._told(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
            xids=None if index not in self._xids else dict(self._xids[index]),
            processes=None if processes is None else _counted(owner(process.pid) for process in processes),
        )

    def _told(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """An answer; None where this card or driver has none."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None

    def _throttled(self, mask: int | None) -> tuple[str, ...] | None:
        if mask is None:
            return None
        nvml = self._nvml
        named = {
            "sw_power_cap": nvml.nvmlClocksEventReasonSwPowerCap,
            "hw_slowdown": nvml.nvmlClocksEventReasonHwSlowdown,
            "hw_thermal": nvml.nvmlClocksEventReasonHwThermalSlowdown,
            "hw_power_brake": nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
            "sw_thermal": nvml.nvmlClocksEventReasonSwThermalSlowdown,
            "sync_boost": nvml.nvmlClocksEventReasonSyncBoost,
        }
        return tuple(name for name, bit in named.items() if mask & bit)


def _silent(card: Card) -> bool:
    """Whether a card tells nothing that each can tell; its name NVML may still know."""
    return card.memory_used_bytes is card.temperature_celsius is card.power_watts is None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _counted(owners: Iterator[str]) -> dict[str, int]:
    counts = dict.fromkeys(("engine", "run", "other", "unknown"), 0)
    for owner in owners:
        counts[owner] += 1
    return counts


def owner_of(engines: set[int], opens: Callable[[int], bool] | None = None) -> Owner:
    """Tells whose a process is.

    Args:
        engines: Process groups of the engines in service.
        opens: Whether a process of this machine has a card open; looked up in /proc unless told.
    """
    has_card = _has_card_open if opens is None else opens
    ours = {process.pid for leader in engines for process in group(leader)}

    def owner(pid: int) -> str:
        try:
            command = psutil.Process(pid).cmdline()
            if not has_card(pid):  # NVML tells the host's numbers: in a container they may be anybody's, or nobody's
                return "unknown"
        except (psutil.Error, OSError):
            return "unknown"
        if pid in ours:
            return "engine"
        return "run" if "pipelines.execute" in command else "other"

    return owner


def _has_card_open(pid: int) -> bool:
    """Whether a process has a device of NVIDIA's open; of another user's, which tells nothing, it is taken for so."""
    try:
        links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except PermissionError:
        return True
    return any(str(link).startswith("/dev/nvidia") for link in links)
