"""A model being written: files in order, hashed as they pass, none under a final name that is not whole."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipelines.errors import MachineUnfit
from training.weights import writer
from training.weights.shards import Spec, as_bytes
from training.weights.writer import ModelWriter, Written, split

TENSORS = {
    "a": torch.randn(3, 4, 5).bfloat16(),
    "b": torch.randint(-128, 127, (4, 6), dtype=torch.int8),
    "c": torch.randn(7),
    "d": torch.randn(2, 2).half(),
    "e": torch.zeros(0, 4),
    "f": torch.tensor([3, 4]),
}
SPECS = [Spec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def _write(folder: Path, shards: list[list[Spec]], *, twice: bool = False) -> dict[int, Written]:
    done: dict[int, Written] = {}
    with ModelWriter(folder, shards, done.__setitem__) as model:
        for number, shard in enumerate(shards):
            for spec in shard * (1 + twice):
                model.write(number, spec.name, 0, as_bytes(TENSORS[spec.name]))
    return done


@pytest.mark.parametrize("cut", [6, 3, 1])
def test_safetensors_reads_what_we_write(cut: int, tmp_path: Path) -> None:
    done = _write(tmp_path, [SPECS[i : i + cut] for i in range(0, 6, cut)])
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(done) == 6 // cut
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == TENSORS.keys()
    assert {path.name for path in tmp_path.iterdir()} == {f.name for f in files} | {"model.safetensors.index.json"}


def test_hash_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    [written] = _write(tmp_path, [SPECS]).values()
    content = (tmp_path / written.file).read_bytes()
    assert (written.size, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@given(order=st.permutations(range(6)), pieces=st.integers(1, 4))
def test_bytes_may_come_in_any_order_within_a_shard(
    order: list[int], pieces: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with ModelWriter(folder, [SPECS], lambda number, written: None) as model:
        for at in order:
            data = as_bytes(TENSORS[SPECS[at].name])
            step = max(1, len(data) // pieces)
            for start in reversed(range(0, len(data), step)):
                model.write(0, SPECS[at].name, start, data[start : start + step])
    [file] = folder.glob("*.safetensors")
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(file).items())


def test_a_shard_that_lacks_bytes_gets_no_name(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="were not written"), ModelWriter(tmp_path, [SPECS], print) as model:
        model.write(0, "a", 0, as_bytes(TENSORS["a"]))
    assert not list(tmp_path.glob("model-*"))


def test_bytes_that_come_twice_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="already"):
        _write(tmp_path, [[SPECS[0], SPECS[1]]], twice=True)


def test_an_error_elsewhere_leaves_the_unfinished_file_under_its_temporary_name(tmp_path: Path) -> None:
    def fail(number: int, written: Written) -> None:
        raise AssertionError("not called")

    model = ModelWriter(tmp_path, [SPECS], fail)
    model.write(0, "a", 0, as_bytes(TENSORS["a"]))
    model.__exit__(ValueError, ValueError("elsewhere"), None)
    assert [path.name for path in tmp_path.iterdir()] == [".model-00001-of-00001.safetensors.partial"]


@pytest.fixture
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", refuse)


@pytest.mark.usefixtures("_full")
def test_a_disk_that_fills_up_is_named_and_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match=r"model-0000\d-of-00006\.safetensors: the disk is full"):
        _write(tmp_path, [[spec] for spec in SPECS])
    assert not list(tmp_path.glob("model-*"))


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 100))
def test_shards_keep_order_and_size(sizes: list[int], limit: int) -> None:
    numbers = split(sizes, limit)
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(numbers[-1] + 1))
    for number in set(numbers):
        members = [size for size, of in zip(sizes, numbers, strict=True) if of == number]
        assert len(members) == 1 or sum(members) <= limit
