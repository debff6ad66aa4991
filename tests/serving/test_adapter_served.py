"""vLLM serves an adapter as it is saved, and as it is exported: what it answers is what the merged model answers.

On a CPU vLLM takes adapters for dense models only; for a mixture of experts it needs a GPU.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from pipelines.config import Config
from serving.engine import VLLM, Engine, Launch, engine
from training.adapter import LoraShape, save_adapter
from training.builtin.architecture import build_model
from training.builtin.processor import build_processor
from training.merge import LoraReader
from training.model import attach_lora, load_quantized
from training.served_adapter import export_adapter

PROMPT = list(range(20, 50))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in dense model, untrained."""
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor()
    torch.manual_seed(0)
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough to be seen."""
    adapted = attach_lora(load_quantized(base, torch.float32, "cpu"), "attention+experts", 8, 16, seed=0)
    for module in adapted.values():
        torch.nn.init.normal_(module.b, std=0.3)
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    save_adapter(adapted, LoraShape("attention+experts", 8, 16), "a" * 64, folder)
    return folder


@pytest.fixture(scope="module")
def vllm(smoke: Config, base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A vLLM with both."""
    # Behind all other arguments: vLLM wants the model to be the first.
    served = export_adapter(LoraReader(adapter, None), base, tmp_path_factory.mktemp("served") / "exported", {})
    modules = shlex.quote(json.dumps({"name": "tuned", "path": str(adapter)}))
    allowed = "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    script = f'{allowed}; exec "$@" {shlex.join(served.flags)} {modules} --max-loras 2'
    launch = Launch(
        model=base, names=("plain",), program=("/bin/sh", "-c", script, "sh", *VLLM),
        serving=smoke.serving, images=smoke.images, hardware=smoke.hardware,
    )  # fmt: skip
    with engine(launch, tmp_path_factory.mktemp("vllm") / "engine.log") as started:
        started.wait_ready(smoke.serving.start_seconds)
        yield started


def _served(vllm: Engine, name: str) -> dict[int, float]:
    """Log probabilities of the five most likely next tokens."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    body["return_tokens_as_token_ids"] = True
    reply = httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    [top] = reply["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): value for token, value in top.items()}


@torch.no_grad()
def test_the_served_adapter_is_the_merged_model(vllm: Engine, base: Path, adapter: Path) -> None:
    stock = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    plain = stock(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    merged = PeftModel.from_pretrained(stock, adapter).merge_and_unload().eval()
    tuned = merged(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    for name, wanted in (("plain", plain), ("tuned", tuned), ("exported", tuned)):
        for token, value in _served(vllm, name).items():
            assert math.isclose(value, float(wanted[token]), abs_tol=0.1), (name, token)
    for name in ("tuned", "exported"):
        assert max(abs(float(plain[token] - tuned[token])) for token in _served(vllm, name)) > 0.5


def test_a_running_engine_takes_it_by_the_request_that_is_printed(vllm: Engine, base: Path, adapter: Path) -> None:
    served = export_adapter(LoraReader(adapter, None), base, adapter.with_name("loaded"), {})
    httpx.post(f"{vllm.url}/v1/load_lora_adapter", json=served.request, timeout=120).raise_for_status()
    assert _served(vllm, "loaded") == pytest.approx(_served(vllm, "exported"), abs=0.02)
