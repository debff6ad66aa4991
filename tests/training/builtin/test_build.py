"""The built-in base models: true architecture, published layout, the same bytes by seed, built once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from pipelines.artifacts import BaseSnapshot
from training.builtin import build as tiny
from training.builtin.architecture import EXPERT_WIDTH, EXPERTS, HIDDEN
from training.builtin.recipe import RECIPES, Recipe, cached_base
from training.weights.shards import read_headers

QUICK = Recipe("moe", threads=1, steps=2, batch_size=2, pictures={"printed": 4})


def test_experts_are_stored_as_published_checkpoints_have_them(moe_base: BaseSnapshot) -> None:
    shapes = {t.name: t.shape for t in read_headers(moe_base.path) if "experts" in t.name}
    assert len(shapes) == 6
    for name, shape in shapes.items():
        wanted = (HIDDEN, 2 * EXPERT_WIDTH) if "gate_up" in name else (EXPERT_WIDTH, HIDDEN)
        assert shape == (EXPERTS, *wanted)


def test_no_expert_is_square() -> None:
    assert HIDDEN not in {EXPERT_WIDTH, 2 * EXPERT_WIDTH}


def test_the_weights_are_bf16_and_vllm_finds_its_field(moe_base: BaseSnapshot) -> None:
    assert {t.dtype for t in read_headers(moe_base.path)} == {torch.bfloat16}
    assert json.loads((moe_base.path / "config.json").read_text())["text_config"]["norm_topk_prob"] is True


def test_transformers_loads_model_and_processor(any_base: BaseSnapshot) -> None:
    model = AutoModelForImageTextToText.from_pretrained(any_base.path)
    assert type(model).__name__ == any_base.architecture
    assert 1.7e6 < sum(p.numel() for p in model.parameters()) < 1.9e6
    processor = AutoProcessor.from_pretrained(any_base.path)
    assert dict(processor.image_processor.size) == {"shortest_edge": 4096, "longest_edge": 65536}
    assert (any_base.path / "video_preprocessor_config.json").is_file()


def test_a_recipe_means_the_same_bytes(tmp_path: Path) -> None:
    first, again = (cached_base("x", QUICK, tmp_path / cache) for cache in ("a", "b"))
    assert (first / "manifest.json").read_bytes() == (again / "manifest.json").read_bytes()


def test_a_model_is_built_once_even_if_two_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = tiny.build_base
    monkeypatch.setattr(tiny, "build_base", lambda recipe, folder: (built.append(folder), original(recipe, folder)))
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: cached_base("x", QUICK, tmp_path), range(2)))
    assert len(folders) == len(built) == 1


def test_a_damaged_model_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = cached_base("x", QUICK, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert (cached_base("x", QUICK, tmp_path) / "model.safetensors").read_bytes() == whole
    assert "model.safetensors" in caplog.text


def test_another_recipe_has_another_digest() -> None:
    digests = {recipe.digest() for recipe in (*RECIPES.values(), QUICK, replace(QUICK, seed=1))}
    assert len(digests) == len(RECIPES) + 2
