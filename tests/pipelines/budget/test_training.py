"""Training is predicted from what was measured, and asks for more when more is asked of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.budget.base import Base, find_base
from pipelines.budget.demand import GIB, Demand
from pipelines.budget.training import largest_micro_batch, lora_parameters, micro_batch, training_demand
from pipelines.config import Config
from pipelines.settings import Settings
from tests.pipelines.budget.variants import changed

WEIGHTS = {"experts", "attention", "MLP", "embedding and head", "vision tower", "router and norms"}


def gib(demand: Demand, *names: str) -> float:
    return sum(line.nbytes for line in demand.lines if line.name in names) / GIB


def test_the_weights_are_those_measured(qwen: Config, base: Base) -> None:
    """16.6 GiB on an H200 after load, experts and attention in NF4."""
    assert gib(training_demand(qwen, base), *WEIGHTS) == pytest.approx(16.6, rel=0.01)


def test_the_update_has_the_measured_number_of_parameters(base: Base) -> None:
    assert lora_parameters(base.shape, "attention+experts", 16) == 642_514_944
    assert lora_parameters(base.shape, "attention", 16) == 13_369_344


def test_the_real_model_stays_within_its_budget(qwen: Config, base: Base) -> None:
    """8,192 tokens in one micro-batch: 30 GiB are allowed."""
    demand = training_demand(qwen, base, tokens=8192)
    assert demand.verdict == "fits"
    assert 24 < demand.nbytes / GIB < 30


def test_paged_states_can_leave_the_card(qwen: Config, base: Base) -> None:
    paged = training_demand(qwen, base)
    resident = training_demand(changed(qwen, "train", optimizer="adamw"), base)
    assert gib(paged, "optimizer") == pytest.approx(1.2, abs=0.01)
    assert (resident.peak_bytes - paged.peak_bytes) / GIB == pytest.approx(4.79, abs=0.01)


def test_without_checkpointing_every_layer_is_kept(qwen: Config, base: Base) -> None:
    kept = training_demand(changed(qwen, "train", activations="keep"), base)
    assert gib(kept, "activations kept") > 20 * gib(training_demand(qwen, base), "activations kept")


def test_several_cards_exchange_gradients(qwen: Config, base: Base) -> None:
    two = training_demand(changed(qwen, "hardware", gpus=2), base)
    assert gib(two, "LoRA gradients") == 2 * gib(training_demand(qwen, base), "LoRA gradients")


def test_a_micro_batch_is_no_larger_than_a_step(smoke: Config) -> None:
    assert micro_batch(smoke) == largest_micro_batch(smoke) == 32 * 128
    assert micro_batch(changed(smoke, "train", tokens_per_batch=1024)) == 1024
    assert largest_micro_batch(changed(smoke, "hardware", gpus=3)) == 11 * 128


def test_on_a_cpu_the_process_counts_too(smoke: Config) -> None:
    """Measured for the embedded default: 0.77 to 0.85 GiB."""
    demand = training_demand(smoke, find_base(smoke.model.source, Settings()))
    assert demand.peak_bytes / GIB == pytest.approx(0.85, rel=0.15)


@given(tokens=st.integers(16, 200_000), more=st.integers(1, 50_000), rank=st.integers(1, 255))
def test_more_asks_for_more(qwen: Config, base: Base, tokens: int, more: int, rank: int) -> None:
    demand = training_demand(qwen, base, tokens=tokens, rank=rank)
    assert training_demand(qwen, base, tokens=tokens + more, rank=rank).nbytes > demand.nbytes
    assert training_demand(qwen, base, tokens=tokens, rank=rank + 1).nbytes > demand.nbytes
