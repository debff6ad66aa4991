"""`builtin://tiny-qwen3-vl-moe` and `builtin://tiny-qwen3-vl`: base models made by seed, the same bytes every time.

True architectures of 1.75 million parameters, trained for half a minute on synthetic images only, cached by the
digest of their recipe, saved as published checkpoints are: bf16, experts as [experts, in, out].
"""

from __future__ import annotations

import fcntl
import inspect
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, Qwen3VLProcessor

from pipelines.durable import commit
from pipelines.manifest import ManifestMismatch, text_digest, verify_manifest, write_manifest
from training import attention, drawings, encoding, loss, positions, tiny_architecture, tiny_processor
from training.attention import use_packed_vision_attention
from training.drawings import Drawing, draw_many
from training.encoding import Encoded, Encoder, collate
from training.loss import AnswerLoss
from training.positions import token_positions
from training.tiny_architecture import build_model
from training.tiny_processor import build_processor

log = logging.getLogger(__name__)

MODULES: tuple[ModuleType, ...] = (
    attention,
    drawings,
    encoding,
    loss,
    positions,
    tiny_architecture,
    tiny_processor,
)
"""Whose source text, beside this module's, is part of every recipe."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, together with the source of the modules that it names."""

    kind: Literal["moe", "dense"]
    threads: int = 1
    """The order of sums depends on it, and with it the last bits of the weights. One, because two are seven times
    slower as soon as anything else wants the cores."""

    seed: int = 0
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-3
    pictures: dict[str, int] = field(default_factory=lambda: {"printed": 4200, "colours": 600, "shapes": 1200})

    def digest(self) -> str:
        """Names the recipe: its values and the text of the modules that carry it out."""
        sources = [inspect.getsource(module) for module in (*MODULES, inspect.getmodule(Recipe)) if module]
        return text_digest(repr(self), *sources)


RECIPES = {"tiny-qwen3-vl-moe": Recipe("moe"), "tiny-qwen3-vl": Recipe("dense")}


def cached_base(name: str, recipe: Recipe, cache: Path) -> Path:
    """The folder of a built-in model; built if it is not there or not whole.

    Two processes that ask at once: one builds, the other waits.
    """
    folder = cache / "models" / f"{name}-{recipe.digest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not _whole(folder):
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            build_base(recipe, partial)
            commit(partial, folder)
    return folder


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
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        verify_manifest(folder)
    except ManifestMismatch as damage:
        log.warning("%s; it is built again", damage)
        return False
    return True


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
        objective(**batch).backward()
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
