"""Peak memory of an engine, sampled while it works: of its processes, or of the card that it serves on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal, Self

import psutil

from pipelines.errors import MachineUnfit
from serving.engine import group


class PeakMemory:
    """Watches in a thread while the block runs.

    What is watched is the resident memory of a process group, or what is in use of the first visible card: in a
    container nobody can tell whose that is, so nothing else may run there.
    """

    def __init__(
        self, leader: int, interval_seconds: float = 0.5, *, of: Literal["processes", "card"] = "processes"
    ) -> None:
        self._leader = leader
        self._interval = interval_seconds
        self._of = of
        self._peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()  # here, so that a card that cannot be watched is an error and not a peak of zero
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def gib(self) -> float:
        """The most seen so far; pages that processes share count for each of them."""
        return self._peak_bytes / 2**30

    def _watch(self) -> None:
        while not self._done.is_set():
            self._look()
            self._done.wait(self._interval)

    def _look(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self._used_bytes())

    def _used_bytes(self) -> int:
        return card_bytes() if self._of == "card" else sum(map(_resident_bytes, group(self._leader)))


def card_bytes() -> int:
    """Memory in use of the first visible card, whoever uses it; by NVML, so without a context of our own there.

    Raises:
        MachineUnfit: The driver tells nothing.
    """
    import pynvml
    import torch  # an engine on a CPU is watched without either

    try:
        return int(torch.cuda.device_memory_used(0))
    except pynvml.NVMLError as error:
        raise MachineUnfit(f"NVML does not tell the card's memory ({error}); is the NVIDIA driver installed?") from None


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
