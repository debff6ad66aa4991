"""Stands in for the module `pynvml`: its functions, names and errors, and what an H200 under load says.

A test holds it against the real module, so that it has no function, argument, constant or field that pynvml lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pynvml


@dataclass(frozen=True)
class Memory:
    """As `c_nvmlMemory_t`."""

    total: int = 150_754_820_096
    free: int = 21_407_268_864
    used: int = 129_347_551_232


@dataclass(frozen=True)
class Utilization:
    """As `c_nvmlUtilization_t`."""

    gpu: int = 98
    memory: int = 61


@dataclass(frozen=True)
class Process:
    """As `c_nvmlProcessInfo_v2_t`."""

    pid: int
    usedGpuMemory: int | None = None


@dataclass(frozen=True)
class Event:
    """As `c_nvmlEventData_t`."""

    device: int
    eventData: int
    eventType: int = pynvml.nvmlEventTypeXidCriticalError
    gpuInstanceId: int = 0
    computeInstanceId: int = 0


@dataclass
class NvmlDouble:
    """The module. `fails` has errors by function; `init` is what opening it raises."""

    cards: int = 1
    clocks: int = pynvml.nvmlClocksEventReasonSwPowerCap
    ecc: int = 0
    processes: tuple[Process, ...] = (Process(2**22 + 1),)  # of the host, as a container sees it
    events: list[Event] = field(default_factory=list)
    init: Exception | None = None
    fails: dict[str, Exception] = field(default_factory=dict)
    open: int = 0

    NVMLError = pynvml.NVMLError
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound  # type: ignore[attr-defined]  # made at import
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded  # type: ignore[attr-defined]
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    NVML_VOLATILE_ECC = pynvml.NVML_VOLATILE_ECC
    nvmlEventTypeXidCriticalError = pynvml.nvmlEventTypeXidCriticalError
    nvmlClocksEventReasonSwPowerCap = pynvml.nvmlClocksEventReasonSwPowerCap
    nvmlClocksEventReasonHwSlowdown = pynvml.nvmlClocksEventReasonHwSlowdown
    nvmlClocksEventReasonHwThermalSlowdown = pynvml.nvmlClocksEventReasonHwThermalSlowdown
    nvmlClocksEventReasonHwPowerBrakeSlowdown = pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    nvmlClocksEventReasonSwThermalSlowdown = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    nvmlClocksEventReasonSyncBoost = pynvml.nvmlClocksEventReasonSyncBoost

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise self.init
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return self._answer("nvmlDeviceGetHandleByIndex", index)

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self._answer("nvmlDeviceGetName", "NVIDIA H200")

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._answer("nvmlDeviceGetUUID", f"GPU-0000000{handle}")

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: Any = None) -> Memory:
        return self._answer("nvmlDeviceGetMemoryInfo", Memory())

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Utilization:
        return self._answer("nvmlDeviceGetUtilizationRates", Utilization())

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return self._answer("nvmlDeviceGetTemperature", 63)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._answer("nvmlDeviceGetPowerUsage", 653_127)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return self._answer("nvmlDeviceGetEnforcedPowerLimit", 700_000)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self._answer("nvmlDeviceGetCurrentClocksEventReasons", self.clocks)

    def nvmlDeviceGetTotalEccErrors(self, handle: int, errorType: int, counterType: int) -> int:
        return self._answer("nvmlDeviceGetTotalEccErrors", self.ecc)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Process]:
        return self._answer("nvmlDeviceGetComputeRunningProcesses", list(self.processes))

    def nvmlEventSetCreate(self) -> object:
        return self._answer("nvmlEventSetCreate", object())

    def nvmlDeviceRegisterEvents(self, handle: int, eventTypes: int, eventSet: object) -> None:
        self._answer("nvmlDeviceRegisterEvents", None)

    def nvmlEventSetWait_v2(self, eventSet: object, timeoutms: int) -> Event:
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        return self.events.pop(0)

    def nvmlEventSetFree(self, eventSet: object) -> None:
        return None

    def _answer(self, function: str, answer: Any) -> Any:
        if function in self.fails:
            raise self.fails[function]
        return answer
