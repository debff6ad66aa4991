"""Safetensors tensor by tensor: what is written can be read by everyone, what is damaged is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import ExportRejected
from training.weights.shards import read_header, read_headers

TENSORS = {
    "a": torch.randn(3, 4, 5).bfloat16(),
    "b": torch.randint(-128, 127, (4, 6), dtype=torch.int8),
    "c": torch.randn(7),
    "d": torch.randn(2, 2).half(),
    "e": torch.zeros(0, 4),
}


def test_we_read_what_safetensors_writes_whole_and_in_slices(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    stored = {tensor.name: tensor for tensor in read_headers(tmp_path)}
    assert all(torch.equal(stored[name].read(), TENSORS[name]) for name in TENSORS)
    assert all(torch.equal(stored["a"].read(i), TENSORS["a"][i]) for i in range(3))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ExportRejected, match="cut short"):
        read_header(file)


def test_an_unexpected_type_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, dtype=torch.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(ExportRejected, match="x is F64"):
        read_headers(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 8 + b"{", b"\x05\0\0\0\0\0\0\0{not}"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ExportRejected, match="no safetensors file"):
        read_headers(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    last = read_headers(tmp_path)[-1]
    os.truncate(last.file, last.offset + 1)
    with pytest.raises(ExportRejected, match="ends early"):
        last.read()
