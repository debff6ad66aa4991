"""What a plan believes of models is what they are: shapes, parameters part by part, and where downloads lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from pipelines.artifacts import BaseSnapshot
from pipelines.budget.base import SHAPES, find_base, read_base
from pipelines.budget.parameters import count_by_shape
from pipelines.budget.training import lora_parameters
from pipelines.model_source import parse_source
from pipelines.settings import Settings
from tests.pipelines.budget.checkpoint import write_checkpoint
from training.sources.cache import folder_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = {"Qwen3VLMoeForConditionalGeneration": "tiny-qwen3-vl-moe", "Qwen3VLForConditionalGeneration": "tiny-qwen3-vl"}


def test_the_shapes_of_the_built_in_models_are_true(any_base: BaseSnapshot, tmp_path: Path) -> None:
    """They are planned by shape before they are built; a change of the architecture must change the file too."""
    on_disk = read_base(any_base.path)
    assumed = find_base(f"builtin://{NAMES[any_base.architecture]}", Settings(home=tmp_path))
    assert on_disk.shape == assumed.shape
    assert on_disk.parameters == assumed.parameters


def test_the_parameters_of_the_real_shape_are_those_of_the_real_architecture() -> None:
    published = json.loads((SHAPES / "Qwen" / "Qwen3-VL-30B-A3B-Instruct.json").read_text())
    with torch.device("meta"):
        model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**published))
    base = find_base(f"hf://Qwen/Qwen3-VL-30B-A3B-Instruct@{COMMIT}", Settings())
    assert base.parameters == count_by_shape(base.shape)
    assert base.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert base.parameters.vision == sum(parameter.numel() for parameter in model.model.visual.parameters())


@pytest.mark.parametrize("targets", ["attention", "attention+experts", "attention+experts+merger"])
def test_the_update_has_as_many_parameters_as_planned(any_base: BaseSnapshot, targets: Any) -> None:
    from training.model import attach_lora, load_quantized

    model = load_quantized(any_base.path, torch.float32, "cpu")
    attach_lora(model, targets, 8, 16, 0)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == lora_parameters(read_base(any_base.path).shape, targets, 8)


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_download_is_found_where_it_is_left(tmp_path: Path, scheme: str) -> None:
    settings = Settings(home=tmp_path)
    source = f"{scheme}://Qwen/Qwen3-VL-30B-A3B-Instruct@{COMMIT}"
    folder = write_checkpoint(folder_of(settings.cache, parse_source(source), COMMIT))
    assert str(folder) in find_base(source, settings).seen
