"""Tokenizer, image processor and chat template of the built-in models: made from nothing, usable offline."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from training.builtin.drawings import DIGIT_QUESTION, QUESTIONS, answers

PATCH, MERGE = 16, 2
"""A patch is 16 x 16 pixels, a visual token 2 x 2 patches."""

MIN_PIXELS, MAX_PIXELS = 64 * 64, 256 * 256
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of the published Qwen3-VL vocabulary."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor() -> Qwen3VLProcessor:
    """The processor, with the pixel limits of configs/smoke.yaml."""
    half = [0.5, 0.5, 0.5]
    shape = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE}
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**shape, image_mean=half, image_std=half, size=size),
        tokenizer=_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**shape, size=size),
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE in which every word of the built-in tasks is one token and any text can be written."""
    raw = json.loads(_train_bpe().to_str())["model"]
    options: dict[str, Any] = {
        "merges": [tuple(merge) for merge in raw["merges"]],
        "unk_token": None,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    tokenizer = Qwen2Tokenizer(vocab=raw["vocab"], **options)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _train_bpe() -> Tokenizer:
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    corpus = [DIGIT_QUESTION, *QUESTIONS.values(), *answers(), *(f"Write {w} as a digit." for w in words)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    bpe.train_from_iterator([*corpus, *["user\nassistant\nsystem\n"] * 3] * 20, trainer)
    return bpe
