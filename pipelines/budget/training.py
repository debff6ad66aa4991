"""What fine-tuning needs: NF4 weights, LoRA in fp32, and the activations of one micro-batch."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.budget.base import Base
from pipelines.budget.demand import GIB, Demand, Line
from pipelines.budget.shape import ModelShape, VisionShape
from pipelines.config import Config

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A parameter in NF4 with double quantisation: half a byte, an 8-bit scale for 64 of them, an fp32 scale for 256 of
those. Measured: 16.6 GiB for Qwen3-VL-30B-A3B with everything else in bf16."""

COMPUTE_BYTES = {"bf16": 2, "fp32": 4}

LORA_BYTES = 4
"""Weights of the update are fp32, and so are their gradients."""

STATE_BYTES = {"adamw": 8, "paged_adamw_8bit": 2}
"""Two moments a parameter. Paged ones lie in memory that the driver moves to the host when the card is full."""

KEPT_PER_LAYER = 1
"""Hidden states that checkpointing keeps of each layer: its input (training/layers/recompute.py)."""

HEAD_ROWS = 512
"""Labelled tokens whose logits exist at once (training/loss.py)."""

HEAD_BYTES = 2 + 4
"""A logit in bf16 and in fp32 (training/loss.py)."""

VISION_FORWARD = (2, 4)
"""Tensors of the intermediate and of the hidden width per patch in one block of the tower; it keeps no gradient."""

MARGIN_BYTES = {"cuda": 1 * GIB, "cpu": 0}
"""CUDA's context and the kernels it loads."""

MARGIN_SHARE = 0.03
"""Fragmentation of the allocator."""

PROCESS_BYTES = {"cuda": 0, "cpu": 0.7 * GIB}
"""Python, PyTorch and its libraries, where the peak is that of the process. Measured: 0.85 GiB in all for the embedded
default, whose model and activations take little."""


def training_demand(config: Config, base: Base, *, tokens: int | None = None, rank: int | None = None) -> Demand:
    """The memory of `finetune`.

    Args:
        config: Sections `hardware`, `data`, `lora` and `train` are used.
        base: What is adapted.
        tokens: In one micro-batch; by default what the config makes of it.
        rank: Of the update; the config's by default.
    """
    tokens, rank = tokens or micro_batch(config), rank or config.lora.rank
    update = lora_parameters(base.shape, config.lora.targets, rank)
    lines = (*_weights(config, base), *_update(config, update, rank), *_activations(config, base.shape, tokens, rank))
    used = Demand("training", lines, 0).peak_bytes
    margin = MARGIN_BYTES[config.hardware.device] + MARGIN_SHARE * used
    lines = (*lines, Line("margin", margin, "what the device's driver holds, fragmentation", "margin"))
    return Demand("training", lines, config.hardware.memory_gib * GIB)


def micro_batch(config: Config) -> int:
    """Most tokens in one micro-batch, padding included: a step may have fewer than the budget allows."""
    return min(config.train.tokens_per_batch, largest_micro_batch(config))


def largest_micro_batch(config: Config) -> int:
    """Tokens of a device's share of a step, if every row were as long as a row may be."""
    return -(-config.train.batch_size // config.hardware.gpus) * config.data.max_tokens


def lora_parameters(shape: ModelShape, targets: str, rank: int) -> int:
    """Trainable parameters: two factors for every adapted matrix."""
    attention = sum(rank * (width + out) for width, out in shape.projections)
    feed_forward = max(shape.experts, 1) * sum(rank * (width + out) for width, out in shape.stacks)
    if not shape.experts:
        feed_forward += rank * shape.hidden  # gate and up are two layers there, each with factors of its own
    layer = attention if targets == "attention" else attention + feed_forward
    mergers = rank * _merger_width(shape.vision) if targets.endswith("merger") else 0
    return shape.layers * layer + mergers


def _merger_width(vision: VisionShape) -> int:
    """Inputs and outputs of both layers of every merger."""
    merged = vision.hidden * vision.patches_per_token
    return (1 + vision.deepstack) * (3 * merged + vision.out)


def _weights(config: Config, base: Base) -> Iterator[Line]:
    count, plain = base.parameters, COMPUTE_BYTES[config.train.precision]
    for name, parameters in (("experts", count.experts), ("attention", count.attention), ("MLP", count.mlp)):
        if parameters:
            yield Line(name, NF4_BYTES * parameters, f"{parameters / 1e6:,.1f} M in NF4")
    for name, parameters in (
        ("embedding and head", count.embedding + count.head),
        ("vision tower", count.vision),
        ("router and norms", count.router + count.norms),
    ):
        yield Line(name, plain * parameters, f"{parameters / 1e6:,.1f} M in {config.train.precision}")


def _update(config: Config, parameters: int, rank: int) -> Iterator[Line]:
    yield Line("LoRA", LORA_BYTES * parameters, f"{parameters / 1e6:,.1f} M in fp32, rank {rank}")
    copies = 2 if config.hardware.gpus > 1 else 1
    why = "fp32, and once more in the buckets that the cards exchange" if copies > 1 else "fp32"
    yield Line("LoRA gradients", LORA_BYTES * parameters * copies, why)
    optimizer = config.train.optimizer
    paged = optimizer.startswith("paged")
    why = f"{optimizer}; can leave the card" if paged else optimizer
    yield Line("optimizer", STATE_BYTES[optimizer] * parameters, why, "apart" if paged else "lasting")


def _activations(config: Config, shape: ModelShape, tokens: int, rank: int) -> Iterator[Line]:
    """Of one micro-batch, as if all of its tokens were visual.

    Gradients of the update are there from the micro-batch before, so both count.
    """
    each, vision = COMPUTE_BYTES[config.train.precision], shape.vision
    features = tokens * shape.hidden * (1 + vision.deepstack)
    if config.lora.targets.endswith("merger"):
        features += tokens * _merger_width(vision)
    if config.train.activations != "keep":
        kept = KEPT_PER_LAYER * shape.layers * tokens * shape.hidden
        why = f"inputs of {shape.layers} layers, {tokens:,} tokens"
    else:
        kept = shape.layers * (_attention_values(shape, tokens) + _kept_values(shape, tokens, rank))
        why = f"all of {shape.layers} layers, {tokens:,} tokens"
    yield Line("activations kept", each * (kept + features), why)
    work = max(_attention_values(shape, tokens), _backward_values(shape, tokens, rank)) + _unpacked(shape, rank)
    yield Line("one layer, backward", each * work, "routed rows, unpacked experts", "passing")
    rows = min(tokens, HEAD_ROWS)
    yield Line("head", HEAD_BYTES * rows * shape.vocabulary, f"logits of {rows:,} labelled tokens", "passing")
    patches, (wide, narrow) = tokens * vision.patches_per_token, VISION_FORWARD
    values = patches * (wide * vision.intermediate + narrow * vision.hidden)
    yield Line("vision tower, forward", each * values, f"{patches:,} patches", "passing")
    if process := PROCESS_BYTES[config.hardware.device]:
        yield Line("process", process, "Python, PyTorch")


def _attention_values(shape: ModelShape, tokens: int) -> int:
    """Input and output of the attention, queries, keys, values, mixed values; and the gradient of each."""
    return 2 * tokens * sum(width + out for width, out in shape.projections)


def _kept_values(shape: ModelShape, tokens: int, rank: int) -> int:
    """What autograd keeps of the experts or the MLP: extended rows, gate and up (training/experts.py)."""
    return tokens * shape.experts_per_token * (shape.hidden + rank + 2 * shape.width)


def _backward_values(shape: ModelShape, tokens: int, rank: int) -> int:
    """What is alive at once in the backward pass of the experts (training/experts.py).

    Rows and the gradient of the outputs; gate and up, their gradient, the gated values and theirs.
    """
    rows = tokens * shape.experts_per_token
    return rows * (2 * (shape.hidden + rank) + 3 * (2 * shape.width + rank))


def _unpacked(shape: ModelShape, rank: int) -> int:
    """Both stacks of one layer, each with the update's factors beside it: 1.2 GB for Qwen3-VL-30B-A3B."""
    return max(shape.experts, 1) * sum((width + rank) * (out + rank) for width, out in shape.stacks)
