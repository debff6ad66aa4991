"""A pass over a checkpoint: whatever goes wrong in whichever thread ends it, and nothing that is wrong is kept."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import ExportRejected, MachineUnfit
from pipelines.schemes import SCHEMES
from pipelines.system.manifest import verify_manifest
from training.weights import released, stream, writer
from training.weights.arithmetic import arithmetic
from training.weights.checkpoint import Checkpoint, open_checkpoint
from training.weights.journal import Journal
from training.weights.making import make
from training.weights.ordered import in_order
from training.weights.pieces import Piece
from training.weights.shards import Stored
from training.weights.stream import Pass

BOTH = {"model": SCHEMES["int8_w8a8"], "merged": SCHEMES["bf16"]}
SMALL = 5e5
"""Bytes of a file: several of them."""


@pytest.fixture
def checkpoint(moe_base: BaseSnapshot) -> Checkpoint:
    """Of a mixture of experts."""
    return open_checkpoint(moe_base.path, moe_base.digest)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> object:
    """Whatever ended a pass: nothing goes on behind it."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def whole(folder: Path, checkpoint: Checkpoint) -> None:
    """Make both models, and check them."""
    digests = make(Pass(checkpoint, None, BOTH, SMALL), folder, None, {}).seal()
    for name, digest in digests.items():
        verify_manifest(folder / name, digest)


def test_an_error_of_a_thread_that_computes_ends_the_pass(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Stored.read_bytes

    def cut(stored: Stored, *arguments: object, **options: object) -> None:
        if "layers.1" in stored.name:
            raise ExportRejected(f"{stored.file} ends early")
        read(stored, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Stored, "read_bytes", cut)
        with pytest.raises(ExportRejected, match="ends early"):
            make(Pass(checkpoint, None, BOTH, SMALL), tmp_path, None, {})
    whole(tmp_path, checkpoint)


def test_an_error_of_a_thread_that_writes_ends_the_pass(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that nobody expects there, while pieces wait for a place in the queue."""

    monkeypatch.setattr(writer, "WAITING", 1)
    monkeypatch.setattr(writer, "WRITEBACK_BYTES", 1)
    for error, kind in ((OSError(errno.EIO, "bad disk"), OSError), (MemoryError("no more"), AssertionError)):

        def fail(*arguments: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(threading, "excepthook", lambda *arguments: None)
            patched.setattr(writer.os, "posix_fadvise", fail)
            with pytest.raises(kind):
                make(Pass(checkpoint, None, BOTH, SMALL), tmp_path, None, {})
    whole(tmp_path, checkpoint)


def test_ctrl_c_while_the_end_of_a_file_waits_for_its_place_ends_the_pass(tmp_path: Path) -> None:
    """The writer would else wait for an end that never comes, and whoever stops for the writer."""
    program = (
        "import queue, sys, threading, time\n"
        "from pathlib import Path\n"
        "from training.weights import writer\n"
        "from training.weights.shards import Spec\n"
        "import torch\n"
        "put = queue.Queue.put\n"
        "def interrupted(self, item, *more):\n"
        "    if not isinstance(item, memoryview) and not sys.exc_info()[0]:\n"
        "        raise KeyboardInterrupt\n"
        "    put(self, item, *more)\n"
        "queue.Queue.put = interrupted\n"
        "try:\n"
        "    with writer.ModelWriter(Path(sys.argv[1]), [[Spec('a', torch.int8, (4,))]], print) as model:\n"
        "        model.write(0, 'a', 0, memoryview(b'abcd'))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(f'stopped, {threading.active_count()} threads')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stderr.strip() == "stopped, 1 threads"
    assert not list(tmp_path.glob("model-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_the_pass(number: signal.Signals, checkpoint: Checkpoint, tmp_path: Path) -> None:
    program = (
        "import os, sys, threading\n"
        "from pathlib import Path\n"
        "from pipelines.schemes import SCHEMES\n"
        "from pipelines.system.processes import end_cleanly_on_sigterm\n"
        "from training.weights import writer\n"
        "from training.weights.checkpoint import open_checkpoint\n"
        "from training.weights.stream import Pass\n"
        "end_cleanly_on_sigterm()\n"
        "written = writer._Shard.write\n"
        "calls = 0\n"
        "def late(*arguments):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 50:\n"
        "        os.kill(os.getpid(), int(sys.argv[3]))\n"
        "    written(*arguments)\n"
        "writer._Shard.write = late\n"
        "schemes = {'model': SCHEMES['int8_w8a8'], 'merged': SCHEMES['bf16']}\n"
        "try:\n"
        "    Pass(open_checkpoint(Path(sys.argv[1]), 'x'), None, schemes, 5e5).run(Path(sys.argv[2]))\n"
        "except (KeyboardInterrupt, SystemExit):\n"
        "    os._exit(7 if threading.active_count() == 1 else 8)\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint.path), str(tmp_path), str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 7, ended.stderr
    whole(tmp_path, checkpoint)


@pytest.fixture
def interrupted(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """All files written, and no model finished."""
    Pass(checkpoint, None, BOTH, SMALL).run(tmp_path)
    return tmp_path


def times(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.glob(".*.partial/*.safetensors")}


def test_a_byte_that_flipped_meanwhile_costs_its_files_alone(interrupted: Path, checkpoint: Checkpoint) -> None:
    file = sorted((interrupted / ".model.partial").glob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before = times(interrupted)
    figures = Pass(checkpoint, None, BOTH, SMALL).run(interrupted)
    assert 0 < figures.read_bytes < 2 * SMALL
    assert {name.partition("/")[2] for name, time in times(interrupted).items() if before[name] != time} == {file.name}
    whole(interrupted, checkpoint)


def test_what_another_device_has_begun_is_not_continued(
    interrupted: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "arithmetic", lambda device, schemes: arithmetic("cpu", schemes))
    before = times(interrupted)
    Pass(checkpoint, None, BOTH, SMALL, device="cuda").run(interrupted)
    assert not set(before.values()) & set(times(interrupted).values())


def test_what_was_begun_of_a_base_that_changed_since_is_not_continued(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Though its manifest, and so its name, is the same."""
    base = shutil.copytree(checkpoint.path, tmp_path / "base")
    Pass(open_checkpoint(base, "x"), None, BOTH, SMALL).run(tmp_path)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] *= 2
    save_file(tensors, base / "model.safetensors")
    make(Pass(open_checkpoint(base, "x"), None, BOTH, SMALL), tmp_path, None, {}).seal()
    merged = {n: t for file in (tmp_path / "merged").glob("*.safetensors") for n, t in load_file(file).items()}
    assert torch.equal(merged["lm_head.weight"], tensors["lm_head.weight"])


def test_a_journal_of_which_nothing_is_there_begins_anew(interrupted: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(interrupted / ".model.partial")
    assert Journal(interrupted, list(BOTH), Pass(checkpoint, None, BOTH, SMALL)._key()).done == {}
    whole(interrupted, checkpoint)


@pytest.mark.parametrize("where", ["config.json", "manifest"])
def test_a_disk_that_fills_up_behind_the_weights_is_named_too(
    where: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(released, "copy_published" if where == "config.json" else "write_manifest", refuse)
    with pytest.raises(MachineUnfit, match="the disk is full; free some and run it again"):
        make(Pass(checkpoint, None, BOTH, SMALL), tmp_path, None, {}).seal()
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    whole(tmp_path, checkpoint)


def test_too_little_memory_is_said_first(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MEMORY_BYTES", 2**60)
    with pytest.raises(MachineUnfit, match=r"the export needs 1073741824\.0 GiB of host memory"):
        Pass(checkpoint, None, BOTH, SMALL).run(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors*"))


@pytest.mark.parametrize("scheme", ["bf16", "int8_w8a8"])
@pytest.mark.parametrize("max_bytes", [1, 1e9])
def test_tensors_of_all_shapes_and_types_pass(scheme: str, max_bytes: float, tmp_path: Path) -> None:
    """A file for each where none fits; nothing to round, no rows, no dimensions."""
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(24, 40),
        "model.layers.0.self_attn.k_proj.weight": torch.randn(3, 40).half(),
        "model.layers.0.self_attn.v_proj.weight": torch.randn(1, 40).bfloat16(),
        "model.layers.0.self_attn.q_norm.weight": torch.randn(7).bfloat16(),
        "model.visual.patch_embed.proj.weight": torch.randn(5, 3, 2, 2, 2).bfloat16(),
        "model.visual.no_rows": torch.zeros(0, 4).bfloat16(),
        "model.visual.no_columns": torch.zeros(4, 0).bfloat16(),
        "model.visual.scalar": torch.tensor(3.5).bfloat16(),
        "model.visual.integers": torch.arange(5),
    }
    base = tmp_path / "base"
    base.mkdir()
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"hidden_size": 40}))
    one_pass = Pass(open_checkpoint(base, "x"), None, {"model": SCHEMES[scheme]}, max_bytes)  # type: ignore[index]
    figures = one_pass.run(tmp_path)
    assert len(figures.files["model"]) == (sum(t.numel() > 0 for t in tensors.values()) if max_bytes == 1 else 1)
    written = {n: t for file in (tmp_path / ".model.partial").glob("*.safetensors") for n, t in load_file(file).items()}
    kept = [name for name in tensors if scheme == "bf16" or "proj" not in name or "visual" in name]
    assert all(torch.equal(written[name], tensors[name]) for name in kept)
    assert len(written) == len(tensors) + (len(tensors) - len(kept))


def test_large_pieces_are_computed_by_fewer_threads(tmp_path: Path) -> None:
    """So that what is in memory does not grow with the width of a model."""
    source = Stored("x", torch.bfloat16, (1, 2**14, 2**13), tmp_path, 0)
    large, small = (Piece(source, 0, (rows, 2**13), transposed=False, parts=()) for rows in (2**14, 8))
    assert stream._threads([small, large]) == 1
    assert stream._threads([small]) >= 2


def test_results_come_in_order_and_an_error_stops_what_was_not_begun() -> None:
    begun = []

    def work(task: int) -> int:
        begun.append(task)
        if task == 5:
            raise ValueError(task)
        return task * task

    results = []
    with pytest.raises(ValueError, match="5"):
        results.extend(in_order(work, range(1000), threads=3, ahead=6))
    assert [task for task, _ in results] == [0, 1, 2, 3, 4]
    results = list(in_order(lambda task: task * task, range(50), threads=3, ahead=6))
    assert results == [(task, task * task) for task in range(50)]
    assert len(begun) < 20
