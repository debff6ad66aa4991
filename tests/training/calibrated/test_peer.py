"""Our rounding against llm-compressor's, and the model that it calibrates against the one that we train."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from pipelines.artifacts import BaseSnapshot
from pipelines.schemes import Name, scheme_of
from pipelines.settings import ROOT
from tests.training.calibrated.conftest import Merge
from training.calibrated.compress import oneshot, plan
from training.calibrated.rows import write_rows
from training.chat.encoding import Encoder
from training.int8 import is_quantized, packed_name, quantize, scale_name, shape_name, unpack
from training.weights.checkpoint import expected_tensors, open_checkpoint
from training.weights.shards import read_headers

FORWARD = Path(__file__).with_name("forward.py")
"""A program for the environment of llm-compressor."""

ROUNDED: Sequence[Name] = ("int8_w8a8", "int8_w8a16", "int4_w4a16")


@pytest.mark.parametrize("name", ROUNDED)
def test_our_rounding_is_llm_compressors(
    name: Name, llm_compressor: str, any_base: BaseSnapshot, merged: Path, tmp_path: Path
) -> None:
    scheme = scheme_of(name, 32)
    oneshot(llm_compressor, plan(scheme, merged, tmp_path, tmp_path / "peer", int(5e9)), tmp_path)
    peer = {tensor.name: tensor for tensor in read_headers(tmp_path / "peer")}
    expected = expected_tensors(open_checkpoint(merged, any_base.digest).planned, scheme)
    assert {(t.name, t.dtype, t.shape) for t in peer.values()} == {
        (spec.name, spec.dtype, spec.shape) for group in expected for spec in group
    }
    for tensor in read_headers(merged):
        if not is_quantized(tensor.name, tensor.shape):
            assert torch.equal(tensor.read(), peer[tensor.name].read()), tensor.name
            continue
        ours = quantize(tensor.read(), scheme)
        assert torch.equal(ours.scale, peer[scale_name(tensor.name)].read()), tensor.name
        if scheme.int8_activations:
            theirs = peer[tensor.name].read()
        else:
            theirs = unpack(peer[packed_name(tensor.name)].read(), scheme.bits or 8)
            assert peer[shape_name(tensor.name)].read().tolist() == list(tensor.shape)
        # It divides in bf16, we in fp32: where that falls on two sides of a half, the steps are neighbours.
        off = (ours.steps.int() - theirs.int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 0.2


def _write_data(folder: Path) -> None:
    """Rows of one to three images of various sizes, the text of various length."""
    folder.mkdir()
    lines = []
    for row in range(6):
        images = [{"type": "image", "image": f"{row}-{i}.png"} for i in range(1 + row % 3)]
        for i, part in enumerate(images):
            Image.effect_noise((64 + 40 * row, 96 + 56 * i), 80).convert("RGB").save(folder / part["image"])
        question = [*images, {"type": "text", "text": "Which digit is written here? " * (row + 1)}]
        answer = [{"type": "text", "text": "The digit is 7."}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "train.jsonl").write_text("\n".join(lines))


def test_the_model_that_is_calibrated_is_the_merged_one(
    llm_compressor: str, any_base: BaseSnapshot, merged: Path, encoder: Encoder, tmp_path: Path
) -> None:
    """Random experts would calibrate as well, and say nothing; so would parts that hold the first row's positions."""
    _write_data(tmp_path / "data")
    write_rows(tmp_path / "data", encoder, 6, 0, tmp_path / "rows")
    command = [llm_compressor, str(FORWARD), str(merged), str(tmp_path / "rows"), str(tmp_path / "out.safetensors")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(tmp_path / "out.safetensors")
    ours = AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.bfloat16).eval()
    files = sorted((tmp_path / "rows").glob("*.safetensors"))
    assert len({tuple(load_file(file)["image_grid_thw"].flatten().tolist()) for file in files}) == 6
    for file in files:
        with torch.no_grad():
            logits = ours(**load_file(file)).logits
        assert (logits - theirs[f"{file.stem}.logits"]).float().norm() < 0.02 * logits.float().norm()
        assert torch.equal(theirs[f"{file.stem}.model"], theirs[f"{file.stem}.parts"])


def test_the_peer_of_the_benchmark_does_our_work(
    llm_compressor: str, moe_base: BaseSnapshot, merge: Merge, tmp_path: Path
) -> None:
    command = [
        llm_compressor,
        str(ROOT / "benchmarks" / "model_free_ptq.py"),
        str(moe_base.path),
        str(tmp_path / "peer"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"seconds", "rss_gib"}
    peer = {tensor.name: tensor for tensor in read_headers(tmp_path / "peer")}
    for tensor in read_headers(merge(moe_base)):
        if is_quantized(tensor.name, tensor.shape):
            ours = quantize(tensor.read())
            assert torch.equal(ours.scale, peer[scale_name(tensor.name)].read())
            assert (ours.steps.int() - peer[tensor.name].read().int()).abs().max() <= 1
