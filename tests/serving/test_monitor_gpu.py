"""NVML against a real card under load: what the monitor says of it is what PyTorch and the card's work say.

Alone on the machine; needs torch (CUDA), nvidia-ml-py, psutil, pydantic, pytest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipelines.monitoring.snapshot import Card
from serving.monitor_gpu import Cards, owner_of

pytestmark = pytest.mark.gpu

GIB = 2**30
CONTEXT_GIB = 0.6
"""What CUDA itself takes on the card, about; allowed to be off by 1 GiB together with the count of PyTorch."""

SECONDS = 6.0


@pytest.fixture(scope="module")
def cards() -> Iterator[Cards]:
    """The machine's cards."""
    with Cards().opened() as opened:
        yield opened


def look(cards: Cards) -> Card:
    return cards.look(owner_of({os.getpgid(0)}))[0]


@contextmanager
def load() -> Iterator[None]:
    """The card multiplies matrices while the block runs, with 8 GiB of memory in use."""
    import torch

    held = [torch.empty(8 * GIB, dtype=torch.uint8, device="cuda")]
    held += [torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    done = threading.Event()

    def multiply() -> None:
        while not done.is_set():
            for _ in range(20):
                torch.matmul(held[1], held[2])
            torch.cuda.synchronize()

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        held.clear()
        torch.cuda.empty_cache()


def told(value: float | None) -> float:
    """A figure that a data centre's card must tell."""
    assert value is not None
    return value


def test_a_card_under_load_is_told_as_it_is(cards: Cards) -> None:
    import torch

    assert cards.state == "cards"
    idle = look(cards)
    with load():
        time.sleep(SECONDS)
        busy = look(cards)
        counted = torch.cuda.memory_reserved()
    print(f"idle {idle.model_dump()}\nbusy {busy.model_dump()}\ntorch {counted}")
    grown = (told(busy.memory_used_bytes) - told(idle.memory_used_bytes)) / GIB
    assert grown == pytest.approx(counted / GIB + CONTEXT_GIB, abs=1)
    assert busy.memory_total_bytes == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.02)
    assert busy.name == torch.cuda.get_device_name(0)
    assert told(busy.utilization) > 0.9
    assert told(busy.power_watts) > 1.5 * told(idle.power_watts)
    assert told(busy.power_watts) < 1.1 * told(busy.power_limit_watts)
    assert 20 < told(busy.temperature_celsius) < 100
    assert not {"hw_slowdown", "hw_thermal", "hw_power_brake"} & set(busy.throttled or ())
    assert busy.throttled is not None
    assert busy.ecc_uncorrected == 0
    assert not busy.xids  # None: a container may not listen
    # In a container NVML may tell none, or numbers of the host.
    assert busy.processes is not None
    assert busy.processes["other"] == 0
