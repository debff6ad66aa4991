"""Memory by phase; on CUDA each phase has a peak of its own, on a CPU the process has one that only grows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from training.allocator import Memory, cap

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_phases_are_told_apart_and_what_was_before_goes_on() -> None:
    memory = Memory(CPU)
    memory.enter("train")
    with memory.phase("evaluate"):
        assert memory.current == "evaluate"
    assert memory.current == "train"
    memory.look()
    assert list(memory.peaks) == ["load", "train", "evaluate"]


def test_a_phase_that_fails_is_left_all_the_same() -> None:
    memory = Memory(CPU)
    with pytest.raises(ZeroDivisionError), memory.phase("evaluate"):
        raise ZeroDivisionError
    assert memory.current == "load"


def test_the_peak_of_a_process_grows_with_what_it_holds() -> None:
    memory = Memory(CPU)
    before = memory.look().allocated_gib
    held = torch.ones(64 * 2**20)  # 256 MiB, written to
    assert memory.look().allocated_gib >= max(before, held.nbytes / 2**30)


def test_a_cpu_has_no_cap() -> None:
    cap(CPU, 0.001)
    assert torch.ones(10**6).sum() == 10**6


@pytest.fixture
def uncapped() -> Iterator[None]:
    """A card of its full size, before and after."""
    torch.cuda.set_per_process_memory_fraction(1.0)
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.usefixtures("uncapped")
def test_on_cuda_each_phase_has_its_own_peak() -> None:
    memory = Memory(CUDA)
    torch.ones(256 * 2**20, device=CUDA, dtype=torch.uint8)
    with memory.phase("evaluate"):
        torch.ones(64 * 2**20, device=CUDA, dtype=torch.uint8)
    memory.look()
    assert memory.peaks["load"].allocated_gib >= 0.25
    assert 0.0625 <= memory.peaks["evaluate"].allocated_gib < 0.25
    assert memory.peaks["load"].reserved_gib >= memory.peaks["load"].allocated_gib


@pytest.mark.gpu
@pytest.mark.usefixtures("uncapped")
def test_a_card_gives_no_more_than_the_profile_has() -> None:
    torch.cuda.empty_cache()
    cap(CUDA, 1.0)
    torch.empty(2**29, device=CUDA, dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**30 + 2**29, device=CUDA, dtype=torch.uint8)
