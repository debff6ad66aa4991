"""What this machine can do: processor, memory, disk, GPUs. `python -m pipelines.system.machine` prints it as JSON."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from pipelines.errors import MachineUnfit

Kernel = Literal["amx", "zentorch"]


class Gpu(BaseModel):
    """One NVIDIA card."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_gib: float
    """In all, the driver's own part included: CUDA reports up to 1.5 % less."""

    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gib:.1f} GiB, capability {self.capability[0]}.{self.capability[1]}"


class Machine(BaseModel):
    """Facts of one machine, as seen by one interpreter."""

    model_config = ConfigDict(frozen=True)

    python: str
    cores: int
    memory_gib: float
    processor: str
    int8_moe_kernel: Kernel | None
    """What computes INT8 experts on this CPU; None: nothing does."""

    gpus: tuple[Gpu, ...]
    gpus_unknown: str | None = None
    """Why the driver did not answer; None: it did."""


def int8_moe_kernel(cpuinfo: str, *, zentorch: bool) -> Kernel | None:
    """What can compute INT8 experts on a CPU: AMX instructions, or zentorch on an AMD Zen with AVX-512.

    Args:
        cpuinfo: The text of /proc/cpuinfo.
        zentorch: Whether the package is installed.
    """
    if "amx_int8" in cpuinfo:
        return "amx"
    if zentorch and "AuthenticAMD" in cpuinfo and "avx512" in cpuinfo:
        return "zentorch"
    return None


def local_int8_moe_kernel() -> Kernel | None:
    """The same for this machine and this interpreter's environment."""
    return int8_moe_kernel(_cpuinfo(), zentorch=importlib.util.find_spec("zentorch") is not None)


def inspect() -> Machine:
    """Look at this machine."""
    gpus, unknown = _gpus()
    models = [line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return Machine(
        python=platform.python_version(),
        cores=psutil.cpu_count() or 1,
        memory_gib=psutil.virtual_memory().total / 2**30,
        processor=models[0] if models else platform.processor(),
        int8_moe_kernel=local_int8_moe_kernel(),
        gpus=gpus,
        gpus_unknown=unknown,
    )


def require_disk(folder: Path, need_bytes: int, purpose: str) -> None:
    """Raise MachineUnfit if the disk of `folder` has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise MachineUnfit(
            f"{purpose} needs {need_bytes / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free; "
            f"free some, or set VLMOPS_HOME to a larger disk"
        )


def require_memory(need_bytes: int, purpose: str) -> None:
    """Raise MachineUnfit if less memory of this host is free than needed."""
    free = psutil.virtual_memory().available
    if free < need_bytes:
        raise MachineUnfit(
            f"{purpose} needs {need_bytes / 2**30:.1f} GiB of host memory, and {free / 2**30:.1f} GiB are free; "
            f"end something else that runs here"
        )


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The cards, or why they are unknown."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), str(error)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(map(_gpu, handles)), None
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    import pynvml

    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_gib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30,
        capability=pynvml.nvmlDeviceGetCudaComputeCapability(handle),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(inspect().model_dump()))
