"""The base in the served scheme: the rounding of what was published, written once, whole or not there."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.system.manifest import manifest_digest, read_manifest, verify_manifest
from tests.training.parts import Configure, adapted_model, run_until_killed, store_adapter
from tests.training.test_export import unfused
from training.export import export
from training.int8 import is_quantized, quantize, scale_name
from training.weights.checkpoint import open_checkpoint
from training.weights.quantized_base import FOLDER, quantized_base


def _write(base: BaseSnapshot, cache: Path) -> Path:
    return quantized_base(open_checkpoint(base.path, base.digest), SCHEMES["int8_w8a8"], 1e9, cache)


def _inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.iterdir()}


def test_it_is_the_published_weights_quantised_bit_for_bit(any_base: BaseSnapshot, tmp_path: Path) -> None:
    folder = _write(any_base, tmp_path)
    written = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    published = unfused(AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.bfloat16))
    wanted = dict(published)
    for name, tensor in published.items():
        if is_quantized(name, tuple(tensor.shape)):
            rounded = quantize(tensor)
            wanted[name], wanted[scale_name(name)] = rounded.steps, rounded.scale
    assert len(wanted) > len(published)
    assert written.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(written[name], wanted[name])]


def test_it_is_a_model_that_engines_load_with_the_published_processor(any_base: BaseSnapshot, tmp_path: Path) -> None:
    folder = _write(any_base, tmp_path)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    ours, published = (AutoProcessor.from_pretrained(path).image_processor.size for path in (folder, any_base.path))
    assert ours == published
    assert read_manifest(folder)["made_from"] == {"base": any_base.digest}
    verify_manifest(folder)


def test_it_is_written_once(moe_base: BaseSnapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = _write(moe_base, tmp_path)
    inodes = _inodes(first)
    assert _write(moe_base, tmp_path) == first
    assert _inodes(first) == inodes
    assert caplog.text.count("once for all runs on this machine") == 1


def test_two_runs_at_once_write_it_once(
    moe_base: BaseSnapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: _write(moe_base, tmp_path), range(2)))
    assert len(folders) == 1
    assert caplog.text.count("once for all runs on this machine") == 1


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "unfinished"])
def test_a_damaged_one_is_written_again(damage: str, moe_base: BaseSnapshot, tmp_path: Path) -> None:
    folder = _write(moe_base, tmp_path)
    digest = manifest_digest(folder)
    [weights] = folder.glob("*.safetensors")
    whole = weights.read_bytes()
    if damage == "changed":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(whole[:-1])
    else:
        (weights if damage == "missing" else folder / "manifest.json").unlink()
    assert manifest_digest(_write(moe_base, tmp_path)) == digest
    verify_manifest(folder, digest)


def test_the_step_hands_it_on_and_another_run_takes_the_same(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path, settings: Settings
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    first = export(configure(), tmp_path / "a", moe_base, data, adapter)
    assert first.quantized_base_path == settings.cache / FOLDER / f"{moe_base.digest[:16]}-int8_w8a8"
    assert first.quantized_base_digest == manifest_digest(first.quantized_base_path)
    inodes = _inodes(first.quantized_base_path)
    second = export(configure("images.max_pixels=16384"), tmp_path / "b", moe_base, data, adapter)
    assert second.quantized_base_digest == first.quantized_base_digest
    assert _inodes(first.quantized_base_path) == inodes


def test_bf16_needs_no_other_base(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path, settings: Settings
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    model = export(configure("export.scheme=bf16"), tmp_path / "run", moe_base, data, adapter)
    assert (model.quantized_base_path, model.quantized_base_digest) == (None, None)
    assert not settings.cache.exists()


@pytest.mark.parametrize("where", ["training.weights.writer._Shard.write", "training.weights.released.verify_release"])
def test_killed_in_the_middle_it_is_not_taken_for_whole(
    where: str, moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path, settings: Settings
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    run_until_killed(where, 1, "export", configure(), tmp_path / "killed", moe_base, data, adapter)
    kept = settings.cache / FOLDER / f"{moe_base.digest[:16]}-int8_w8a8"
    assert kept.with_name(f".{kept.name}.partial").exists()
    assert not kept.exists()
    model = export(configure(), tmp_path / "killed", moe_base, data, adapter)
    assert model.quantized_base_digest == manifest_digest(_write(moe_base, tmp_path / "elsewhere"))
    assert not list(kept.parent.glob(".*.partial"))
