"""Safetensors tensor by tensor: what is written can be read by everyone, what is damaged is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import ExportRejected
from training.weights.shards import INDEX, read_header, read_headers

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


Header = dict[str, Any]

LIES: dict[str, Callable[[Header], object]] = {
    "overlapping": lambda header: header["c"].update(data_offsets=header["d"]["data_offsets"], shape=[2]),
    "before the data": lambda header: header["a"].update(data_offsets=[-8, 112]),
    "beyond the file": lambda header: header["c"].update(data_offsets=[10**12, 10**12 + 28]),
    "another shape": lambda header: header["b"].update(shape=[4, 7]),
    "a negative shape": lambda header: header["b"].update(shape=[-4, -6]),
    "left out": lambda header: header.pop("b"),
    "no offsets": lambda header: header["b"].pop("data_offsets"),
    "no entry": lambda header: header.update(b=7),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(lie: Callable[[Header], object], tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    lie(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
    with pytest.raises(ExportRejected, match=r"x\.safetensors: (by its header|\d+ bytes, and|no safetensors)"):
        read_headers(tmp_path)


def test_what_was_written_behind_the_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ExportRejected, match="more was written behind"):
        read_header(file)


def test_a_header_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 4) + b"[{}]")
    with pytest.raises(ExportRejected, match="no safetensors file"):
        read_headers(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    with pytest.raises(ExportRejected, match="a is in several files"):
        read_headers(tmp_path)


def test_an_index_decides_which_files_are_read_and_must_be_right(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    index = {"a": "model-1.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    [only] = read_headers(tmp_path)
    assert only.file.name == "model-1.safetensors"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index, "b": "model-1.safetensors"}}))
    with pytest.raises(ExportRejected, match="b is not where it says"):
        read_headers(tmp_path)


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
