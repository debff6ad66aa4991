"""Served parity: vLLM reads what training read and predicts what the reference does; another model does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Config
from pipelines.config_export import Parity as Limits
from pipelines.errors import ExportRejected
from pipelines.parity import Parity, require_agreement
from pipelines.schemes import SCHEMES
from serving.client import Prediction
from serving.engine import Engine, Launch, engine
from serving.parity import divergence, served_agreement
from tests.training.parity.parts import change, write_merged, write_quantized
from training.adapter import LoraShape, save_adapter
from training.builtin.architecture import build_model
from training.builtin.processor import build_processor
from training.chat.encoding import Encoder, load_processor
from training.model import attach_lora, load_quantized
from training.parity.measure import measure_parity
from training.parity.prompts import draw_prompts

W8A8 = SCHEMES["int8_w8a8"]


logits = st.lists(st.floats(-20, 20), min_size=24, max_size=24)


@given(logits, logits, st.integers(0, 23))
def test_the_divergence_never_exceeds_the_true_one(reference: list[float], engine: list[float], token: int) -> None:
    """Whatever an engine does not tell, a right model is not taken for a wrong one."""
    p, q = _normalized(reference), _normalized(engine)
    told, top = _told(q, 5, token), sorted(range(24), key=lambda i: -p[i])[:5]
    true = sum(math.exp(p[i]) * (p[i] - q[i]) for i in range(24))
    assert 0 <= divergence(top, [p[i] for i in top], told) <= true + 1e-6


@given(logits)
def test_the_same_predictions_do_not_diverge(reference: list[float]) -> None:
    p = _normalized(reference)
    top = sorted(range(24), key=lambda i: -p[i])[:5]
    assert divergence(top, [p[i] for i in top], _told(p, 5, top[0])) < 1e-6


def test_a_token_that_the_engine_does_not_even_tell_counts() -> None:
    """0.9 for what is less likely than the fifth of five others."""
    told = Prediction({i: math.log(0.19) for i in range(5)}, {i: i + 1 for i in range(5)})
    assert divergence([9], [math.log(0.9)], told) > 1


def _normalized(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return [logit - total for logit in logits]


def _told(logprobs: list[float], top: int, token: int) -> Prediction:
    """The likeliest tokens, and the one that stands there."""
    order = sorted(range(len(logprobs)), key=lambda i: -logprobs[i])
    shown = {*order[:top], token}
    return Prediction({i: logprobs[i] for i in shown}, {i: order.index(i) + 1 for i in shown})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in dense model, untrained, with predictions that differ."""
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor()
    torch.manual_seed(0)
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    change(folder, lambda tensors: tensors["lm_head.weight"].mul_(8))
    return folder


def _tuned(base: Path, seed: int, folder: Path, smoke: Config) -> tuple[Path, Parity]:
    """An export of the base with an adapter of random weights, and how it compares."""
    adapted = attach_lora(load_quantized(base, torch.float32, "cpu"), "attention+experts", 8, 16, seed=seed)
    for module in adapted.values():
        torch.nn.init.normal_(module.b, std=0.1)
    save_adapter(adapted, LoraShape("attention+experts", 8, 16), "a" * 64, folder / "adapter")
    merged = write_merged(base, folder / "adapter", folder / "merged")
    model = write_quantized(merged, folder / "model", "int8_w8a8")
    encoder = Encoder(load_processor(base, smoke.images.min_pixels, smoke.images.max_pixels))
    prompts = draw_prompts(folder / "drawn", encoder, 6)
    golden = folder / "parity"
    return model, measure_parity(base, folder / "adapter", model, merged, prompts, device="cpu", folder=golden)


@pytest.fixture(scope="module")
def tuned(base: Path, smoke: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parity]:
    """The model that is served."""
    return _tuned(base, 1, tmp_path_factory.mktemp("tuned"), smoke)


@pytest.fixture(scope="module")
def vllm(smoke: Config, tuned: tuple[Path, Parity], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A vLLM with it."""
    launch = Launch(
        model=tuned[0], names=("tuned",), serving=smoke.serving, images=smoke.images, hardware=smoke.hardware
    )
    with engine(launch, tmp_path_factory.mktemp("vllm") / "engine.log") as started:
        started.wait_ready(smoke.serving.start_seconds)
        yield started


def test_what_is_served_predicts_what_was_trained(vllm: Engine, tuned: tuple[Path, Parity]) -> None:
    parity = tuned[1]
    ticks: list[int] = []
    served = served_agreement(vllm.url, "tuned", parity.golden, lambda: ticks.append(1))
    assert served.positions == parity.exported.positions
    assert len(ticks) == parity.prompts == parity.images == 6
    assert served.mean_kl < 0.01
    require_agreement("served", served, parity.base, W8A8, Limits())


def test_another_model_in_its_place_is_found(vllm: Engine, base: Path, smoke: Config, tmp_path: Path) -> None:
    _, other = _tuned(base, 2, tmp_path, smoke)
    served = served_agreement(vllm.url, "tuned", other.golden, lambda: None)
    with pytest.raises(ExportRejected, match=r"the served model does not predict(.|\n)*max_kl"):
        require_agreement("served", served, other.base, W8A8, Limits())
