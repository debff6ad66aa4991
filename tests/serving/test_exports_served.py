"""Real vLLM serves what is exported, in every scheme that this CPU has kernels for, and predicts as the merged does.

Random weights with a random adapter that is large enough to be seen: what is tried are layouts, names, packing, scales
and kernels, for which no model needs to be clever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Literal

import httpx
import pytest
import torch

from pipelines.config import Config
from pipelines.schemes import Name, scheme_of
from pipelines.system.machine import local_int8_moe_kernel
from serving.engine import Launch, engine
from training.adapter import LoraShape, save_adapter
from training.builtin.architecture import build_model
from training.builtin.processor import build_processor
from training.model import attach_lora, load_quantized
from training.provenance import open_update
from training.weights.checkpoint import open_checkpoint
from training.weights.making import make
from training.weights.stream import Pass

LIMITS: dict[Name, float] = {"int8_w8a8": 0.02, "int4_w4a16": 0.25}
"""KL divergence from the merged model, as a share of that of the base without the adapter. Random weights suffer from
four bits more than trained ones do."""

PROMPTS = [[(7 * i + 11 * j) % 90 + 10 for j in range(24)] for i in range(12)]
Tops = list[dict[int, float]]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_scheme_is_served_as_the_merged_model(
    kind: Literal["dense", "moe"], smoke: Config, tmp_path: Path
) -> None:
    if kind == "moe" and local_int8_moe_kernel() is None:
        pytest.skip("no kernel for quantised experts on this CPU: neither AMX nor zentorch on an AMD Zen")
    base = _base(kind, tmp_path / "base")
    checkpoint = open_checkpoint(base, "0" * 64)
    update = open_update(_adapter(base, tmp_path / "tuned"), "1" * 64, checkpoint)
    schemes = {name: scheme_of(name, 32) for name in ("bf16", *LIMITS)}
    export = tmp_path / "exports"
    make(Pass(checkpoint, update, schemes, 1e9), export, smoke.images, {}).seal()
    make(Pass(checkpoint, None, {"base": scheme_of("bf16")}, 1e9), export, smoke.images, {}).seal()
    served = _served({name: export / name for name in (*schemes, "base")}, smoke, tmp_path)
    wanted = served.pop("bf16")
    far = _kl(wanted, served.pop("base"))
    assert far > 1
    for name, limit in LIMITS.items():
        assert _kl(wanted, served[name]) < limit * far, (name, far)


def _base(kind: Literal["dense", "moe"], folder: Path) -> Path:
    processor = build_processor()
    torch.manual_seed(0)
    model = build_model(kind, processor)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that predictions are not alike whatever the weights
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _adapter(base: Path, folder: Path) -> Path:
    adapted = attach_lora(load_quantized(base, torch.float32, "cpu"), "attention+experts", 8, 16, seed=0)
    with torch.no_grad():
        for module in adapted.values():
            module.b.normal_(std=0.05)
    save_adapter(adapted, LoraShape("attention+experts", 8, 16), "0" * 64, folder)
    return folder


def _served(models: Mapping[str, Path], smoke: Config, folder: Path) -> dict[str, Tops]:
    """All engines start together: most of that is one core importing Python."""
    with ExitStack() as stack:
        started = {}
        for name, model in models.items():
            launch = Launch(
                model=model, names=(name,), serving=smoke.serving, images=smoke.images, hardware=smoke.hardware
            )
            started[name] = stack.enter_context(engine(launch, folder / f"{name}.log"))
        for one in started.values():
            one.wait_ready(smoke.serving.start_seconds)
        return {name: [_tops(one.url, name, prompt) for prompt in PROMPTS] for name, one in started.items()}


def _tops(url: str, name: str, prompt: list[int]) -> dict[int, float]:
    """Log probabilities of the likeliest next tokens, and of all of them where there are no more than vLLM tells."""
    body = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20}
    body["return_tokens_as_token_ids"] = True
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    [top] = reply["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): value for token, value in top.items()}


def _kl(wanted: Tops, found: Tops) -> float:
    """Mean over prompts; a token that the other does not tell is at most as likely as its last."""
    return fmean(
        sum(math.exp(value) * (value - other.get(token, min(other.values()))) for token, value in top.items())
        for top, other in zip(wanted, found, strict=True)
    )
