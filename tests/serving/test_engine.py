"""The engine's argument list, and its processes from start to stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.config import Config, Hardware
from pipelines.errors import EngineFailed, MachineUnfit
from serving.engine import engine, environment, find, group, options
from serving.memory import PeakMemory, card_bytes
from tests.serving.conftest import DOUBLE, Maker

CARD = Hardware(name="card", device="cuda", memory_gib=48)


def _value(flags: list[str], flag: str) -> str:
    return flags[flags.index(flag) + 1]


def test_arguments(make: Maker) -> None:
    command = make(7).launch().command(8801)
    at = command.index("serve")
    assert command[at + 2 : at + 9] == [
        "--host", "127.0.0.1", "--port", "8801", "--served-model-name", "digits", "digits-v7",
    ]  # fmt: skip
    assert _value(command, "--load-format") == "safetensors"
    assert _value(command, "--allowed-media-domains") == "deny.invalid"
    assert json.loads(_value(command, "--limit-mm-per-prompt")) == {"image": 1, "video": 0}


def test_further_flags_come_last_so_that_they_count(make: Maker) -> None:
    command = replace(make(7).launch(), extra=("--dtype", "float16")).command(8801)
    assert command[-2:] == ["--dtype", "float16"]
    assert command.index("--dtype") < len(command) - 2


def test_pixel_limits_are_the_config_s(smoke: Config) -> None:
    size = json.loads(_value(options(smoke.serving, smoke.images, smoke.hardware), "--mm-processor-kwargs"))["size"]
    assert size == {"shortest_edge": smoke.images.min_pixels, "longest_edge": smoke.images.max_pixels}


def test_devices_differ(smoke: Config) -> None:
    cpu, cuda = (options(smoke.serving, smoke.images, hardware) for hardware in (smoke.hardware, CARD))
    assert "--enforce-eager" in cpu
    assert _value(cpu, "--kv-cache-memory-bytes") == str(2**28)
    assert not {"--enforce-eager", "--kv-cache-memory-bytes", "--distributed-executor-backend"} & set(cuda)
    assert _value(cuda, "--gpu-memory-utilization") == "0.85"
    assert environment(CARD)["HF_HUB_OFFLINE"] == "1"
    assert not any("CPU" in name for name in environment(CARD))


def test_a_capped_card_is_served_capped(smoke: Config) -> None:
    capped = CARD.model_copy(update={"card_gib": 139.8})
    share = float(_value(options(smoke.serving, smoke.images, capped), "--gpu-memory-utilization"))
    assert share * 139.8 == pytest.approx(0.85 * 48, rel=1e-3)


def test_a_card_that_cannot_be_watched_is_no_peak_of_zero() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(MachineUnfit, match="NVML"), PeakMemory(1, of="card"):
        pass


@pytest.mark.gpu
def test_memory_of_the_card_is_what_is_in_use_there() -> None:
    before = card_bytes()
    held = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    with PeakMemory(1, of="card") as memory:
        assert memory.gib * 2**30 >= before + held.nbytes


def test_an_engine_ends_with_its_block(make: Maker, tmp_path: Path, no_process_left: None) -> None:
    with engine(make(1).launch(DOUBLE), tmp_path / "engine.log") as started, PeakMemory(started.pid, 0.05) as memory:
        assert 0 < started.wait_ready(10) < 10
        assert len(group(started.pid)) == 2
        assert list(find(tmp_path)) == [started.pid]
    assert group(started.pid) == []
    assert find(tmp_path) == {}
    assert 0.01 < memory.gib < 1


def test_an_engine_ends_when_its_block_fails(make: Maker, tmp_path: Path, no_process_left: None) -> None:
    with pytest.raises(EngineFailed), engine(make(1).launch(DOUBLE), tmp_path / "engine.log") as started:
        replace(started, names=("another",)).wait_ready(1)
    assert not psutil.pid_exists(started.pid)


def test_a_dead_engine_is_reported_with_its_log(make: Maker, tmp_path: Path) -> None:
    launch, died = make(1, "dies").launch(DOUBLE), r"died.*\n.*initialization failed"
    with engine(launch, tmp_path / "engine.log") as started, pytest.raises(EngineFailed, match=died):
        started.wait_ready(10)


def test_a_hanging_engine_meets_its_deadline(make: Maker, tmp_path: Path, no_process_left: None) -> None:
    launch, late = make(1, "never").launch(DOUBLE), "did not answer within 1 s"
    with engine(launch, tmp_path / "engine.log") as started, pytest.raises(EngineFailed, match=late):
        started.wait_ready(1)
