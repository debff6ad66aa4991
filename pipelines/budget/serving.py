"""What vLLM needs to serve a model: weights, what it keeps beside them, and the KV cache in the rest of its share."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.budget.base import Base
from pipelines.budget.demand import GIB, Demand, Line
from pipelines.budget.shape import ModelShape
from pipelines.budget.training import lora_parameters
from pipelines.config import Config, Images
from pipelines.schemes import Scheme

BF16_BYTES = 2
"""A parameter, or the scale of a group."""

ROW_SCALE_BYTES = 4
"""The scale of a row: vLLM holds it in fp32."""

KV_BYTES = 2
"""A number in the KV cache, bf16."""

BUFFERS_BYTES = 0.46 * GIB
"""What vLLM counts as weights beyond the tensors. Measured on an H200, vLLM 0.26: bf16 58.33 GiB for 57.87 computed,
INT8 30.57 for 30.11."""

CONTEXT_BYTES = 0.24 * GIB
"""Beside PyTorch's own allocations: CUDA context, libraries. Measured likewise."""

GRAPHS_BYTES = 0.24 * GIB
"""CUDA graphs. Measured likewise; other cards have shown more (vllm #11452)."""

PIXEL_BYTES = 4
"""A value of a patch as it comes from the image processor."""

VISION_WIDTHS = (6, 1)
"""Tensors of the hidden and of the intermediate width per patch at the peak of the profile run: queries, keys and
values, residual, normalised, projected; the MLP. With pixels and features this predicts 1.99 GiB for 16,384 tokens;
measured are 2.14."""

PROCESS_BYTES = 1.4 * GIB
"""An engine on a CPU besides weights and KV cache: Python, PyTorch, vLLM. Measured: 1.66 GiB in all for the embedded
default, whose KV cache has 0.25."""


def serving_demand(config: Config, base: Base, scheme: Scheme, *, name: str) -> Demand:
    """The memory of an engine that can hold one sequence of the greatest length: with less it does not start.

    Args:
        config: Sections `hardware`, `images` and `serving` are used.
        base: Has the shape of what is served.
        scheme: That it is stored in.
        name: Of the demand.
    """
    length = config.serving.max_model_len
    if config.hardware.device == "cuda":
        beside = [*_on_card(config, base.shape), *_adapter(config, base.shape)]
        cache = Line("KV cache", length * kv_bytes(base.shape), f"one sequence of {length:,} tokens")
    else:
        beside = [Line("process", PROCESS_BYTES, "Python, PyTorch, vLLM")]
        cache = Line("KV cache", config.serving.kv_cache_gib * GIB, "serving.kv_cache_gib")
    lines = (*_weights(base, scheme), *beside, cache)
    return Demand(name, lines, share_bytes(config))


def share_bytes(config: Config) -> float:
    """What the engine may take of the device."""
    whole = config.hardware.memory_gib * GIB
    return whole * config.serving.gpu_memory_utilization if config.hardware.device == "cuda" else whole


def kv_bytes(shape: ModelShape) -> int:
    """KV cache of one token: keys and values of every layer."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * KV_BYTES


def kv_tokens(config: Config, base: Base, demand: Demand) -> int:
    """Tokens that the KV cache will hold: on a card it gets the rest of the engine's share; 0 if nothing is left."""
    (cache,) = (line.nbytes for line in demand.lines if line.name == "KV cache")
    room = demand.limit_bytes - (demand.nbytes - cache) if config.hardware.device == "cuda" else cache
    return max(0, int(room / kv_bytes(base.shape)))


def weight_bytes(base: Base, scheme: Scheme) -> float:
    """What vLLM reports on a card after loading a model, in any of the schemes."""
    return BUFFERS_BYTES + sum(line.nbytes for line in _weights(base, scheme))


def quantized_bytes(base: Base, scheme: Scheme, row_scale_bytes: int) -> float:
    """Attention, MLP and experts in a scheme, scales included.

    Args:
        base: Has their number.
        scheme: That they are stored in.
        row_scale_bytes: The scale of a row, where rows have one.
    """
    count = base.parameters.quantized
    if scheme.bits is None:
        return BF16_BYTES * count
    scales = BF16_BYTES * count / scheme.group if scheme.group else row_scale_bytes * quantized_rows(base.shape)
    return scheme.bits / 8 * count + scales


def _weights(base: Base, scheme: Scheme) -> Iterator[Line]:
    count = base.parameters
    layers = "attention and experts" if base.shape.experts else "attention and MLP"
    groups = f", groups of {scheme.group}" if scheme.group else ""
    why = f"{count.quantized / 1e6:,.1f} M in {scheme.name}{groups}"
    yield Line(layers, quantized_bytes(base, scheme, ROW_SCALE_BYTES), why)
    plain = count.total - count.quantized
    yield Line("all other weights", BF16_BYTES * plain, f"{plain / 1e6:,.1f} M in bf16")


def quantized_rows(shape: ModelShape) -> int:
    """Outputs of all matrices of attention, MLP and experts."""
    matrices = (*shape.projections, *shape.stacks * max(shape.experts, 1))
    return shape.layers * sum(out for _, out in matrices)


def _on_card(config: Config, shape: ModelShape) -> Iterator[Line]:
    yield Line("buffers", BUFFERS_BYTES, "kept by vLLM beside the weights")
    yield Line("context and graphs", CONTEXT_BYTES + GRAPHS_BYTES, "CUDA's own")
    tokens = max(config.serving.max_num_batched_tokens, image_tokens(config.images, shape))
    why = f"{tokens:,} tokens in a batch, all of them visual"
    yield Line("activations", tokens * max(_vision_bytes(shape), _layer_bytes(shape)), why)


def _adapter(config: Config, shape: ModelShape) -> Iterator[Line]:
    """Where versions are adapters: vLLM keeps a place for one in every layer that could have it, adapted or not."""
    if config.export.artifact == "adapter":
        parameters, rank = lora_parameters(shape, "attention+experts", config.lora.rank), config.lora.rank
        yield Line("adapter", BF16_BYTES * parameters, f"{parameters / 1e6:,.1f} M in bf16, rank {rank}")


def image_tokens(images: Images, shape: ModelShape) -> int:
    """Tokens of the largest image."""
    pixels_per_patch = shape.vision.patch_values // (3 * 2)  # three channels, two frames
    return images.max_pixels // (pixels_per_patch * shape.vision.patches_per_token)


def _vision_bytes(shape: ModelShape) -> int:
    """Profile run, per visual token: its patches in the tower, its features and those of DeepStack."""
    vision, (narrow, wide) = shape.vision, VISION_WIDTHS
    patch = 2 * (narrow * vision.hidden + wide * vision.intermediate) + PIXEL_BYTES * vision.patch_values
    return vision.patches_per_token * patch + 2 * (1 + vision.deepstack) * vision.out


def _layer_bytes(shape: ModelShape) -> int:
    """Profile run, per token: routed rows of the fused experts, two buffers."""
    return 2 * shape.experts_per_token * (max(2 * shape.width, shape.hidden) + shape.width)
