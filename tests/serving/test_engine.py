"""The engine's argument list, and its processes from start to stop."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.config import Config, Hardware
from pipelines.errors import EngineFailed, MachineUnfit
from pipelines.system.redact import redacted
from serving.engine import Engine, engine, environment, find, group, options
from serving.memory import PeakMemory, card_bytes
from serving.promotion.room import require_room
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
    assert _value(command, "--allowed-media-domains") == "no/host"
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
    assert environment(smoke.serving, CARD)["HF_HUB_OFFLINE"] == "1"
    assert not any("CPU" in name for name in environment(smoke.serving, CARD))


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


def test_whoever_got_the_number_of_a_dead_engine_is_let_be(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        Engine(stranger.pid, "http://127.0.0.1:1", tmp_path / "v1-abc.log", ()).stop(0.1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_engine_is_found_under_the_name_that_its_log_has_now(make: Maker, tmp_path: Path) -> None:
    with engine(make(1).launch(DOUBLE), tmp_path / "v1.log") as started:
        started.wait_ready(10)
        (tmp_path / "v1.log").rename(tmp_path / "v2.log")
        assert find(tmp_path) == {started.pid: tmp_path / "v2.log"}
        (tmp_path / "v2.log").rename(tmp_path / "v1.log")


def test_an_engine_gets_no_secret_of_ours(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = (
        "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_API_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "MYSQL_PWD",
        "DATABASE_URL", "GITHUB_PAT", "OPENAI_APIKEY", "SSH_AUTH_SOCK",
    )  # fmt: skip
    for name in named:
        monkeypatch.setenv(name, "do-not-tell")
    for name in ("HTTPS_PROXY", "http_proxy", "PIP_INDEX"):
        monkeypatch.setenv(name, "https://do-not-tell@proxy:3128")
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "NO_PROXY": "localhost",
        "HTTP_PROXY": "http://proxy",
    }.items():
        monkeypatch.setenv(name, value)
    prints = replace(make(1).launch(("/bin/sh", "-c", "env")), names=("digits",))
    prints.start(8801, tmp_path / "env.log").wait()
    printed = (tmp_path / "env.log").read_text()
    assert "do-not-tell" not in printed
    kept = ("TOKENIZERS_PARALLELISM=false", "NO_PROXY=localhost", "HTTP_PROXY=http://proxy", "PWD=")
    assert all(variable in printed for variable in kept)


def test_weights_that_cannot_fit_are_refused_before_anything_moves(make: Maker) -> None:
    version = make(1)
    require_room(version)
    with (version.model / "model.safetensors").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(EngineFailed, match=r"1.00 GiB of weights and 0.25 GiB of KV cache, .* may take 1.00 GiB"):
        require_room(version)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [secret]"),
        ("{'api_key': 'abcdefgh'}", "{'api_key': '[secret]'}"),
        ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=[secret]"),
        ("--api-key sk-abcdefghijklmnop", "--api-key [secret]"),
        ("--api-key abcdefgh --seed 0", "--api-key [secret] --seed 0"),
        ("['--api-key', 'abcdefgh', '--seed']", "['--api-key', '[secret]', '--seed']"),
        ("'api_key': ['abcdefgh'], 'seed': 0", "'api_key': ['[secret]'], 'seed': 0"),
        ("MYSQL_PWD=abcdefgh PGPASSWORD=abcdefgh", "MYSQL_PWD=[secret] PGPASSWORD=[secret]"),
        ("sent vlmops-" + "aB3_-" * 9, "sent [secret]"),
        ("glpat-abcdefghij0123456789 xoxb-123456789012-abc ghs_" + "a" * 36, "[secret] [secret] [secret]"),
        ("http://user:word@mlflow/x", "http://[secret]@mlflow/x"),
        ("https://abcdefgh@host/x.git", "https://[secret]@host/x.git"),
        ("vlmops-worker-1 --ssl-keyfile /etc/tls/key.pem --tokenizer models/tiny PWD=/srv/models", None),
        ("max_num_batched_tokens=8192, pad_token='<pad>', eos_token_id=151645", None),
    ],
)
def test_what_a_log_says_is_shown_without_its_secrets(said: str, shown: str | None) -> None:
    assert redacted(said) == (said if shown is None else shown)
