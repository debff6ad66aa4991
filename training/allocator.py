"""What training takes of the device's memory, by phase, and the limit that it keeps to.

Nothing here empties the allocator's cache: that costs a synchronisation, and what it gives back is taken again at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from pipelines.artifacts import MemoryPeak

Phase = Literal["load", "train", "evaluate", "save"]

GIB = 2**30


def cap(device: torch.device, memory_gib: float) -> None:
    """Let PyTorch take no more of a CUDA device than a hardware profile has: a larger card stands for a smaller one."""
    if device.type == "cuda":
        total_gib = torch.cuda.get_device_properties(device).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gib / total_gib), device.index)


class Memory:
    """Peaks by phase. On CUDA each phase has its own; on a CPU a peak is the process's until then."""

    def __init__(self, device: torch.device) -> None:
        """Begin with the phase `load`."""
        self.device = device
        self.current: Phase = "load"
        self.peaks: dict[Phase, MemoryPeak] = {}
        if device.type == "cuda":
            torch.cuda.init()  # before that there are no figures
        self._begin()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The block is this phase; what was before it goes on after it."""
        before = self.current
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, phase: Phase) -> None:
        """End the current phase, and begin this one."""
        self.look()
        self.current = phase
        self._begin()

    def look(self) -> MemoryPeak:
        """The current phase until now, earlier times of it included."""
        seen = _read_cuda(self.device, self.counted) if self.device.type == "cuda" else _read_process()
        self.peaks[self.current] = peak = _larger(self.peaks.get(self.current), seen)
        self.counted += seen.retries
        return peak

    def _begin(self) -> None:
        self.counted = 0  # retries of earlier phases: PyTorch counts them from the start of the process
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.counted = torch.cuda.memory_stats(self.device)["num_alloc_retries"]


def _read_cuda(device: torch.device, retries_before: int) -> MemoryPeak:
    stats = torch.cuda.memory_stats(device)
    return MemoryPeak(
        allocated_gib=stats["allocated_bytes.all.peak"] / GIB,
        reserved_gib=stats["reserved_bytes.all.peak"] / GIB,
        inactive_gib=stats["inactive_split_bytes.all.peak"] / GIB,
        retries=stats["num_alloc_retries"] - retries_before,
    )


def _read_process() -> MemoryPeak:
    """Peak resident memory, from the kernel; a process has no allocator of PyTorch's to look into."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found, status
    peak_gib = int(found[1]) / 2**20
    return MemoryPeak(allocated_gib=peak_gib, reserved_gib=peak_gib, inactive_gib=0, retries=0)


def _larger(a: MemoryPeak | None, b: MemoryPeak) -> MemoryPeak:
    if a is None:
        return b
    return MemoryPeak(
        allocated_gib=max(a.allocated_gib, b.allocated_gib),
        reserved_gib=max(a.reserved_gib, b.reserved_gib),
        inactive_gib=max(a.inactive_gib, b.inactive_gib),
        retries=a.retries + b.retries,
    )
