"""The largest settings that fit, and where something does not fit, what to change: each way alone is enough."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.budget.base import Base
from pipelines.budget.demand import COMFORTABLE, GIB, Demand, largest
from pipelines.budget.exporting import group_objection
from pipelines.budget.serving import ROW_SCALE_BYTES, kv_tokens, quantized_bytes, serving_demand
from pipelines.budget.training import largest_micro_batch, lora_parameters, micro_batch, training_demand
from pipelines.config import Config
from pipelines.hardware import objections
from pipelines.schemes import Name, scheme_of

TOKEN_STEP = 256
"""Token budgets are suggested in multiples of this."""

LARGEST_RANK = 256
"""Of what a config may say."""

SMALLER: tuple[Name, ...] = ("int8_w8a8", "int8_w8a16", "int4_w4a16")
"""Schemes that need no calibration, in the order in which they are suggested."""

LARGEST_SHARE = 0.95
"""Of the card, for the engine; the rest is for what else holds memory there."""


def largest_tokens(config: Config, base: Base) -> int | None:
    """The largest `train.tokens_per_batch` that fits; at most what a whole step can have."""
    most = largest_micro_batch(config)
    if _fits_training(config, base, tokens=most):
        return most
    return largest(lambda tokens: _fits_training(config, base, tokens=tokens), most, TOKEN_STEP)


def largest_rank(config: Config, base: Base) -> int | None:
    """The largest `lora.rank` that fits."""
    return largest(lambda rank: _fits_training(config, base, rank=rank), LARGEST_RANK)


def ways_to_train(config: Config, base: Base) -> tuple[str, ...]:
    """What to change so that training fits: one thing, or if one is not enough, two."""
    if ways := [*_fewer_tokens(config, base), *_smaller_update(config, base)]:
        return tuple(ways)
    tokens = min(config.data.max_tokens, micro_batch(config))
    fewer = _with(config, "train", tokens_per_batch=tokens)
    both = [f"lower train.tokens_per_batch to {tokens:,}, and {way}" for way in _smaller_update(fewer, base)]
    least = training_demand(_with(config, "lora", targets="attention"), base, tokens=TOKEN_STEP, rank=1)
    return tuple(both) or (_larger_device(config, least),)


def ways_to_serve(config: Config, base: Base, demand: Demand) -> tuple[str, ...]:
    """What to change so that an engine fits."""
    ways = [*_larger_share(config, demand), *_shorter(config, base, demand), *_smaller_weights(config, base)]
    return tuple(ways) or (_larger_device(config, demand),)


def _fits_training(config: Config, base: Base, *, tokens: int | None = None, rank: int | None = None) -> bool:
    return training_demand(config, base, tokens=tokens, rank=rank).verdict == "fits"


def _fewer_tokens(config: Config, base: Base) -> Iterator[str]:
    tokens = largest_tokens(config, base)
    if tokens and tokens >= config.data.max_tokens:
        yield f"lower train.tokens_per_batch from {micro_batch(config):,} to {tokens:,}"
    elif tokens:  # a row is never cut, so the budget must hold the longest
        yield f"lower data.max_tokens and train.tokens_per_batch to {tokens:,}, and images.max_pixels with them"


def _smaller_update(config: Config, base: Base) -> Iterator[str]:
    if rank := largest_rank(config, base):
        yield f"lower lora.rank from {config.lora.rank} to {rank}"
    attention = _with(config, "lora", targets="attention")
    if config.lora.targets != "attention" and _fits_training(attention, base):
        parameters = lora_parameters(base.shape, "attention", config.lora.rank)
        yield f"set lora.targets to attention, which trains {parameters / 1e6:,.1f} M parameters"


def _with(config: Config, section: str, **values: object) -> Config:
    """The config with some values of a section changed."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _larger_share(config: Config, demand: Demand) -> Iterator[str]:
    now = config.serving.gpu_memory_utilization
    share = demand.nbytes / COMFORTABLE / (config.hardware.memory_gib * GIB)
    if config.hardware.device == "cuda" and now < share <= LARGEST_SHARE:
        yield f"raise serving.gpu_memory_utilization from {now} to {share + 0.005:.2f}"


def _shorter(config: Config, base: Base, demand: Demand) -> Iterator[str]:
    length = kv_tokens(config, base, demand)
    if config.evaluate.max_new_tokens < length < config.serving.max_model_len:
        yield f"lower serving.max_model_len from {config.serving.max_model_len:,} to {length:,}"


def _smaller_weights(config: Config, base: Base) -> Iterator[str]:
    """The first of the smaller schemes that this hardware has kernels for and that fits."""
    now = quantized_bytes(base, config.export.stored, ROW_SCALE_BYTES)
    for name in SMALLER:
        scheme = scheme_of(name, config.export.group_size)
        smaller = quantized_bytes(base, scheme, ROW_SCALE_BYTES) < now and not group_objection(base.shape, scheme)
        fits = serving_demand(config, base, scheme, name="serving").verdict != "does not fit"
        if smaller and fits and not objections(config.hardware, scheme):
            yield f"set export.scheme to {name}"
            return


def _larger_device(config: Config, least: Demand) -> str:
    used = least.limit_bytes / config.hardware.memory_gib  # of each GiB that the profile allows
    return f"no setting is small enough; it takes a device that allows {least.nbytes / COMFORTABLE / used:.0f} GiB"
