"""The real client against an engine that loses a request, and against one that never answers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pipelines.config_load import Load
from pipelines.errors import EngineFailed
from serving.engine import engine
from serving.load.bench import Target
from serving.load.points import measure_load
from serving.load.prompts import Prompt
from serving.load.watch import counters
from tests.serving.conftest import DOUBLE, Maker

Start = Callable[..., Target]
LOAD = Load(concurrencies=(2,), requests=6, warmup=0, repeats=1, output_tokens=2)


@pytest.fixture
def start(make: Maker, tmp_path: Path) -> Iterator[Start]:
    """Starts the double; its model's folder has a tokenizer."""
    with ExitStack() as stack:

        def run(fault: str = "", **behaviour: object) -> Target:
            from training.builtin.processor import build_processor

            version = make(1, fault, **behaviour)
            build_processor().save_pretrained(version.model)
            started = stack.enter_context(engine(version.launch(DOUBLE), tmp_path / "engine.log"))
            started.wait_ready(10)
            return Target(started.url, version.serving.name, version.model)

        yield run


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    """One."""
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "picture.png")
    return [Prompt((tmp_path / "picture.png",), "Which colour is this?")]


def test_a_lost_request_makes_the_run_invalid(start: Start, prompts: list[Prompt], tmp_path: Path) -> None:
    report = measure_load(start("drop"), prompts, LOAD, tmp_path / "load")
    assert report.peak_gib is None
    assert "5 of 6 requests completed, 1 failed" in report.objections[0]
    assert [path.name for path in (tmp_path / "load").glob("concurrency*")] == ["concurrency-2-run-1.json"]


def test_a_client_that_does_not_run_is_a_failure_with_its_last_words(
    start: Start, prompts: list[Prompt], tmp_path: Path
) -> None:
    target = start()
    for file in target.tokenizer.glob("token*"):
        file.unlink()
    with pytest.raises(EngineFailed, match=r"(?s)vllm bench serve ended with 1; .*tokenizer"):
        measure_load(target, prompts, LOAD, tmp_path / "load")


def test_ctrl_c_ends_the_client_too(start: Start, prompts: list[Prompt], tmp_path: Path) -> None:
    target = start(seconds=120)
    threading.Thread(target=_interrupt_once_busy, args=(target.url,), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        measure_load(target, prompts, LOAD, tmp_path / "load")
    commands = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    assert [command for command in commands if "bench" in command] == []
    assert not list((tmp_path / "load").glob("*.jsonl"))


def _interrupt_once_busy(url: str) -> None:
    while counters(url).kv_usage == 0:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
