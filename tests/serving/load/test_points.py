"""The real client against an engine that loses a request, once or always, and against one that never answers."""

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
from serving.client import metrics
from serving.engine import engine
from serving.load.bench import Target
from serving.load.points import measure_load
from serving.load.prompts import Prompt
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


def test_a_run_that_lost_a_request_is_repeated(
    start: Start, prompts: list[Prompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start("drop", answers={prompts[0].text: "a b c"})
    load = LOAD.model_copy(update={"output_tokens": tokens(target, "abc")})
    report = measure_load(target, prompts, load, tmp_path / "load")
    assert "run 1 at concurrency-2 is invalid and repeated: 5 of 6 requests completed, 1 failed" in caplog.text
    assert report.objections == ()
    assert report.peak_gib is None
    assert [path.name for path in (tmp_path / "load").glob("concurrency*")] == ["concurrency-2-run-1.json"]


def test_a_run_that_is_invalid_again_stays_so(
    start: Start, prompts: list[Prompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start(answers={prompts[0].text: "a b c"})
    load = LOAD.model_copy(update={"output_tokens": tokens(target, "abc") + 1})
    report = measure_load(target, prompts, load, tmp_path / "load")
    assert caplog.text.count("is invalid and repeated") == 1
    assert "concurrency-2: answers have" in report.objections[0]


def tokens(target: Target, text: str) -> int:
    """Of an answer, as the client counts them."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(target.tokenizer)(text, add_special_tokens=False).input_ids)


def test_a_request_that_is_lost_while_warming_up_costs_nothing(
    start: Start, prompts: list[Prompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = start("error", answers={prompts[0].text: "a b c"})
    load = LOAD.model_copy(update={"warmup": 6, "output_tokens": tokens(target, "abc")})
    assert measure_load(target, prompts, load, tmp_path / "load").objections == ()
    assert caplog.text.count("warming up: ") == 1


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
    while metrics(url).kv_usage == 0:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
