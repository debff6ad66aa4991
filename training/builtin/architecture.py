"""The shapes of the built-in models: Qwen3-VL in small, with all that makes it hard: experts, M-RoPE, DeepStack."""

from __future__ import annotations

from typing import Any, Literal

from transformers import (
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
)

from training.builtin.processor import MERGE, PATCH

HIDDEN, LAYERS, HEAD = 128, 3, 32
EXPERTS, EXPERTS_PER_TOKEN, EXPERT_WIDTH = 6, 2, 96
"""Neither the width nor twice the width may equal HIDDEN: the layout of a square expert cannot be told by its shape.
A multiple of 32, as INT8 kernels want it."""


def build_model(kind: Literal["moe", "dense"], processor: Qwen3VLProcessor) -> PreTrainedModel:
    """A model with random weights in fp32, from PyTorch's current seed."""
    parts = {"text_config": _text(processor) | _feed_forward(kind), "vision_config": _vision(), **_tokens(processor)}
    if kind == "dense":
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**parts))
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**parts))
    model.set_experts_implementation("eager")  # the fastest of the stock ones for training on a CPU
    return model


def _text(processor: Qwen3VLProcessor) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": HIDDEN // HEAD // 2,
        "head_dim": HEAD,
        "max_position_embeddings": 1024,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
        },
    }


def _feed_forward(kind: Literal["moe", "dense"]) -> dict[str, Any]:
    """The same number of parameters either way."""
    if kind == "dense":
        return {"intermediate_size": EXPERTS * EXPERT_WIDTH}
    return {
        "intermediate_size": EXPERTS * EXPERT_WIDTH,
        "moe_intermediate_size": EXPERT_WIDTH,
        "num_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "decoder_sparse_step": 1,
    }


def _vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "hidden_act": "gelu_pytorch_tanh",
    }


def _tokens(processor: Qwen3VLProcessor) -> dict[str, Any]:
    marks = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {field: processor.tokenizer.convert_tokens_to_ids(mark) for field, mark in marks.items()}
    return {**ids, "tie_word_embeddings": False}
