"""Safetensors tensor by tensor: what is written can be read by everyone, what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines.errors import ExportRejected
from training.weights.shards import ModelWriter, Spec, read_header, read_headers, split_shards

TENSORS = {
    "a": torch.randn(3, 4, 5).bfloat16(),
    "b": torch.randint(-128, 127, (4, 6), dtype=torch.int8),
    "c": torch.randn(7),
    "d": torch.randn(2, 2).half(),
    "e": torch.zeros(0, 4),
}
GROUPS = [[Spec(name, tensor.dtype, tuple(tensor.shape))] for name, tensor in TENSORS.items()]


def _write(folder: Path, max_bytes: float) -> None:
    with ModelWriter(folder, GROUPS, max_bytes) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)


@pytest.mark.parametrize("max_bytes", [1e9, 130, 1])
def test_safetensors_reads_what_we_write(max_bytes: float, tmp_path: Path) -> None:
    _write(tmp_path, max_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == {1e9: 1, 130: 2, 1: 5}[max_bytes]
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert {path.name for path in tmp_path.iterdir()} == {f.name for f in files} | {"model.safetensors.index.json"}


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


def test_an_error_leaves_no_file_under_its_final_name(tmp_path: Path) -> None:
    def write_out_of_order() -> None:
        with ModelWriter(tmp_path, GROUPS, 1e9) as writer:
            writer.write("a", TENSORS["a"])
            writer.write("c", TENSORS["c"])

    with pytest.raises(AssertionError):
        write_out_of_order()
    assert not list(tmp_path.glob("*.safetensors"))


def test_leaving_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not every"), ModelWriter(tmp_path, GROUPS, 1e9) as writer:
        writer.write("a", TENSORS["a"])


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 100))
def test_shards_keep_order_and_size(sizes: list[int], limit: int) -> None:
    groups = [[Spec(str(i), torch.int8, (size,))] for i, size in enumerate(sizes)]
    shards = split_shards(groups, limit)
    assert [spec.name for shard in shards for spec in shard] == [str(i) for i in range(len(sizes))]
    assert all(shard for shard in shards)
    assert all(len(shard) == 1 or sum(spec.nbytes for spec in shard) <= limit for shard in shards)
