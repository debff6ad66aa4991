"""The exported folder: what travels with the weights, and a check that reads them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import ExportRejected
from training.weights.released import NEEDED, copy_companions, served_config, verify_release
from training.weights.shards import Spec

EXPECTED = [Spec("w.weight", torch.int8, (2, 3)), Spec("w.weight_scale", torch.bfloat16, (2, 1))]


def _release(folder: Path, scale: float = 0.5, **more: torch.Tensor) -> None:
    tensors = {
        "w.weight": torch.ones(2, 3, dtype=torch.int8),
        "w.weight_scale": torch.full((2, 1), scale, dtype=torch.bfloat16),
    }
    save_file(tensors | more, folder / "model.safetensors")
    for name in NEEDED:
        (folder / name).write_text("{}")


def test_a_whole_release_passes(tmp_path: Path) -> None:
    _release(tmp_path)
    verify_release(tmp_path, EXPECTED)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_and_positive_is_found(scale: float, tmp_path: Path) -> None:
    _release(tmp_path, scale)
    with pytest.raises(ExportRejected, match="weight_scale is not finite and positive"):
        verify_release(tmp_path, EXPECTED)


def test_missing_and_unexpected_tensors_are_found(tmp_path: Path) -> None:
    _release(tmp_path, extra=torch.ones(1))
    with pytest.raises(ExportRejected, match="differ: extra"):
        verify_release(tmp_path, EXPECTED)
    with pytest.raises(ExportRejected, match="lm_head"):
        verify_release(tmp_path, [*EXPECTED, Spec("extra", torch.float32, (1,)), Spec("lm_head", torch.int8, (1,))])


def test_an_expert_that_was_not_quantised_is_found(tmp_path: Path) -> None:
    _release(tmp_path, **{"w.weight": torch.ones(2, 3, dtype=torch.bfloat16)})
    with pytest.raises(ExportRejected, match=r"w\.weight"):
        verify_release(tmp_path, EXPECTED)


@pytest.mark.parametrize("name", NEEDED)
def test_a_file_that_engines_need_is_missed(name: str, tmp_path: Path) -> None:
    _release(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ExportRejected, match=name):
        verify_release(tmp_path, EXPECTED)


def test_a_model_that_sees_needs_an_image_processor(tmp_path: Path) -> None:
    _release(tmp_path)
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    with pytest.raises(ExportRejected, match=r"no preprocessor_config\.json or processor_config.json"):
        verify_release(tmp_path, EXPECTED)
    (tmp_path / "processor_config.json").write_text("{}")
    verify_release(tmp_path, EXPECTED)


def test_a_config_that_transformers_saved_becomes_what_vllm_reads() -> None:
    saved = {"model_type": "qwen3_vl_moe", "text_config": {"num_local_experts": 6, "hidden_size": 8}, "x": 1}
    text = {"num_experts": 6, "hidden_size": 8, "norm_topk_prob": True}
    assert served_config(saved) == {"model_type": "qwen3_vl_moe", "text_config": text, "x": 1}
    assert served_config(served_config(saved)) == served_config(saved)
    for other in ({"model_type": "qwen3_vl", "text_config": {"hidden_size": 8}}, {"model_type": "qwen3_moe"}):
        assert served_config(other) == other


def test_pixel_limits_are_those_of_training_and_old_names_do_not_win(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 1, "max_pixels": 2, "patch_size": 16}))
    (base / "processor_config.json").write_text(json.dumps({"image_processor": {"size": {}}}))
    (base / "chat_template.jinja").write_text("x")
    for other in ("model.safetensors", "manifest.json", "model.safetensors.index.json", "README.md"):
        (base / other).write_text("{}")
    copy_companions(base, out, 4096, 65536)
    size = {"shortest_edge": 4096, "longest_edge": 65536}
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"patch_size": 16, "size": size}
    assert json.loads((out / "processor_config.json").read_text()) == {"image_processor": {"size": size}}
    assert {f.name for f in out.iterdir()} == {
        "preprocessor_config.json",
        "processor_config.json",
        "chat_template.jinja",
    }
