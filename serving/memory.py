"""Memory of an engine: its peak while it works, of its processes or its card, and room on the card for the next one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import psutil

from pipelines.config import Hardware, Serving
from pipelines.errors import EngineFailed, MachineUnfit
from pipelines.system.processes import wait_until
from serving.engine import OUT_OF_MEMORY, group

GIB = 2**30

FREED_SECONDS = 30.0
"""For a driver to free the memory of processes that were killed; it takes up to some seconds for a full card."""

SLACK_BYTES = GIB
"""NVML counts a little as used that CUDA does not: who is that close is left to vLLM's own check."""


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


@dataclass(frozen=True)
class CardMemory:
    """Of one card, in bytes."""

    free: int
    total: int


def freest_card() -> CardMemory | None:
    """The card that has most memory free; None where NVML tells nothing, and vLLM then finds no card either."""
    import pynvml  # torch, which knows the one that is visible, takes seconds to import, in which requests wait

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        cards = [CardMemory(memory.free, memory.total) for memory in map(pynvml.nvmlDeviceGetMemoryInfo, handles)]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return max(cards, key=lambda card: card.free, default=None)


def wait_for_room(serving: Serving, hardware: Hardware, seconds: float = FREED_SECONDS) -> None:
    """Wait until the card has what an engine takes at its start; at once on a CPU.

    Raises:
        EngineFailed: It has not; says how much there is.
    """
    if hardware.device == "cuda":
        wait_until(lambda: _lacking(serving, hardware) <= 0, seconds, lambda: _full(serving, hardware, seconds), 0.1)


def _lacking(serving: Serving, hardware: Hardware) -> float:
    card = freest_card()
    if card is None:
        return 0.0
    return _need(serving, hardware, card) - SLACK_BYTES - card.free


def _need(serving: Serving, hardware: Hardware, card: CardMemory) -> float:
    return serving.gpu_memory_utilization * min(hardware.memory_gib * GIB, hardware.share * card.total)


def _full(serving: Serving, hardware: Hardware, seconds: float) -> EngineFailed:
    card = freest_card() or CardMemory(0, 0)
    return EngineFailed(
        f"after {seconds:.0f} s {card.free / GIB:.1f} of the card's {card.total / GIB:.1f} GiB are free, and an engine "
        f"takes {_need(serving, hardware, card) / GIB:.1f}{OUT_OF_MEMORY}"
    )


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
