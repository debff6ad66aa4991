"""Builds the embedded base models: true architectures of 1.8 million parameters, trained on synthetic images only.

Saved as published checkpoints are: bf16, experts as [experts, in, out]. What is built, and where it is kept, is said
by `training/builtin/recipe.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel, Qwen3VLProcessor

from pipelines.system.manifest import write_manifest
from training.builtin.architecture import build_model
from training.builtin.drawings import Drawing, draw_many
from training.builtin.processor import build_processor
from training.builtin.recipe import Recipe
from training.chat.encoding import Encoded, Encoder, collate
from training.chat.positions import token_positions
from training.layers.attention import use_packed_vision_attention
from training.loss import AnswerLoss

log = logging.getLogger(__name__)


def build_base(recipe: Recipe, folder: Path) -> None:
    """Train a base model and write it, manifest last."""
    log.info("building the %s base model: %d steps on synthetic images", recipe.kind, recipe.steps)
    folder.mkdir(parents=True)
    processor = build_processor()
    with _reproducible(recipe.seed, recipe.threads):
        model = build_model(recipe.kind, processor)
        _train(model, processor, recipe)
    _save(model, processor, folder)
    write_manifest(folder, recipe=recipe.digest())


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _train(model: PreTrainedModel, processor: Qwen3VLProcessor, recipe: Recipe) -> None:
    use_packed_vision_attention(model)
    encoder = Encoder(processor)
    rows = [_encode(encoder, drawing) for drawing in draw_many(recipe.pictures, recipe.seed)]
    places = [token_positions(model, row) for row in rows]
    objective = AnswerLoss(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.15
    )
    for _ in range(recipe.steps):
        chosen = torch.randint(len(rows), (recipe.batch_size,)).tolist()
        batch = collate([rows[i] for i in chosen], [places[i] for i in chosen], processor.tokenizer.pad_token_id)
        functional.cross_entropy(*objective.answers(**batch)).backward()  # the head learns too
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _encode(encoder: Encoder, drawing: Drawing) -> Encoded:
    question = [{"type": "image"}, {"type": "text", "text": drawing.question}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": drawing.answer}]},
    ]
    return encoder.encode(messages, [drawing.image])


def _save(model: PreTrainedModel, processor: Qwen3VLProcessor, folder: Path) -> None:
    tensors = {name: _published(name, tensor) for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(_published_config(model), indent=2, sort_keys=True))
    end, pad = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad, do_sample=False).save_pretrained(folder)
    # Part by part, because published checkpoints have these files and not the one of Processor.save_pretrained.
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.video_processor.save_pretrained(folder)


def _published_config(model: PreTrainedModel) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_diff_dict()
    config |= {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    text = config["text_config"]
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
        text["norm_topk_prob"] = True  # vLLM reads it; transformers always does it and has no such field
    return config


def _published(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As on the hub: bf16, and experts as [experts, in, out], where transformers has [experts, out, in]."""
    if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        tensor = tensor.transpose(1, 2)
    return tensor.to(torch.bfloat16).contiguous()
