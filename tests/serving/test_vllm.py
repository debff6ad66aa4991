"""The real vLLM, started once: what the double imitates is so, and our flags exist. Random weights are enough."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from PIL import Image

from pipelines.config import Config
from pipelines.errors import EngineFailed
from pipelines.monitoring.place import Place
from pipelines.settings import ROOT
from pipelines.system.processes import tail, wait_until
from serving.client import Client, Reply, metrics, served_names
from serving.engine import Engine, Launch, engine
from serving.keys_service import NAME_HEADER
from serving.monitor_scrape import engine_facts, scrape
from serving.questions import Message
from serving.served import IN_SERVICE
from tests.pipelines.monitoring.expressions import asked_of
from tests.serving.conftest import DOUBLE, Maker

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "Which digit is this?"}]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in dense model, untrained."""
    import torch

    from training.builtin.architecture import build_model
    from training.builtin.processor import build_processor

    folder = tmp_path_factory.mktemp("model")
    processor = build_processor()
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vllm(smoke: Config, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A vLLM that answers; every flag of ours is read by its parser."""
    launch = Launch(
        model=model,
        names=("digits", "digits-v1"),
        serving=smoke.serving,
        images=smoke.images,
        hardware=smoke.hardware,
        extra=IN_SERVICE,
    )
    log = tmp_path_factory.mktemp("vllm") / "engine.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMOPS_HOME", str(log.parent / "home"))
        patch.setenv("VLMOPS_CONFIG", str(all_sampled(log.parent)))
        with engine(launch, log) as started:
            started.wait_ready(smoke.serving.start_seconds)
            assert "unrecognized arguments" not in tail(log, 1000)
            yield started


def all_sampled(folder: Path) -> Path:
    """The embedded default, every request of a client sampled."""
    config = folder / "sampled.yaml"
    text = (ROOT / "configs" / "smoke.yaml").read_text()
    config.write_text(f"{text}\nmonitoring: {{ inputs: {{ share: 1 }} }}\n")
    return config


@pytest.fixture
def double(make: Maker, tmp_path: Path) -> Iterator[Engine]:
    """The double."""
    with engine(make(1).launch(DOUBLE), tmp_path / "double.log") as started:
        started.wait_ready(10)
        yield started


def test_the_double_speaks_as_vllm(vllm: Engine, double: Engine) -> None:
    assert served_names(vllm.url) == served_names(double.url) == ("digits", "digits-v1")
    for url in (vllm.url, double.url):
        before = metrics(url)
        assert (before.in_flight, before.lost) == (0, 0)
        reply = asyncio.run(_ask(url))
        assert reply.finish_reason in {"stop", "length"}
        assert min(reply.prompt_tokens or 0, reply.answer_tokens or 0, reply.request_bytes) > 0
        assert metrics(url).started == before.started
        assert _status(url, {"model": "digits-v2", "messages": QUESTION}) == 404


async def _ask(url: str, messages: Sequence[Message] = QUESTION) -> Reply:
    async with Client(url) as client:
        return await client.ask("digits-v1", messages, 4)


def _status(url: str, body: dict[str, object]) -> int:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code


def test_a_question_that_is_too_long_is_refused_and_nothing_is_counted_as_lost(vllm: Engine) -> None:
    long = [{"role": "user", "content": [{"type": "text", "text": "digit " * 1000}]}]
    before = metrics(vllm.url).lost
    with pytest.raises(EngineFailed, match=r"refuses the question(.|\n)*256(.|\n)*raise serving.max_model_len"):
        asyncio.run(_ask(vllm.url, long))
    assert metrics(vllm.url).lost == before


def test_a_system_message_of_parts_is_read(vllm: Engine) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief, and be right."}]}
    alone, with_system = (asyncio.run(_ask(vllm.url, asked)) for asked in (QUESTION, [system, *QUESTION]))
    assert (with_system.prompt_tokens or 0) > (alone.prompt_tokens or 0) + 3


def test_the_double_streams_as_vllm(vllm: Engine, double: Engine) -> None:
    for url in (vllm.url, double.url):
        body = {"model": "digits", "messages": QUESTION, "max_tokens": 4, "stream": True}
        text = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).text
        *events, end = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert end == "[DONE]"
        assert json.loads(events[-1])["choices"][0]["finish_reason"] in {"stop", "length"}


def test_a_full_queue_refuses_a_stream_before_it_begins(vllm: Engine, smoke: Config) -> None:
    """Of itself vLLM answers 200, and the error as the first event."""
    places = smoke.serving.max_num_seqs + smoke.serving.max_waiting
    answers = asyncio.run(_streams(vllm.url, 3 * places))
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all('"error"' not in answer.text for answer in answers if answer.status_code == httpx.codes.OK)
    assert all(answer.json()["error"]["code"] == 503 for answer in answers if answer.status_code != httpx.codes.OK)


async def _streams(url: str, at_once: int) -> list[httpx.Response]:
    body = {"model": "digits", "messages": QUESTION, "max_tokens": 16, "stream": True}
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as http:
        return await asyncio.gather(*(http.post(f"{url}/v1/chat/completions", json=body) for _ in range(at_once)))


def test_addresses_of_images_are_refused(vllm: Engine) -> None:
    for address in ("http://127.0.0.1:1/x.png", "http://2130706433/x.png", "file:///etc/passwd"):
        content = [{"type": "image_url", "image_url": {"url": address}}]
        assert _status(vllm.url, {"model": "digits", "messages": [{"role": "user", "content": content}]}) == 400


def test_more_images_than_allowed_are_refused(vllm: Engine) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}]
    assert (
        _status(vllm.url, {"model": "digits", "max_tokens": 4, "messages": [{"role": "user", "content": content}]})
        == 200
    )
    content *= 2
    assert _status(vllm.url, {"model": "digits", "messages": [{"role": "user", "content": content}]}) == 400


def test_rules_and_dashboards_ask_for_what_vllm_exports(vllm: Engine) -> None:
    seen = scrape("vLLM", f"{vllm.url}/metrics")
    exported = {sample.name for family in seen.families for sample in family.samples}
    wanted = asked_of("vllm:") | asked_of("process_")
    assert len(wanted) >= 12
    assert wanted <= exported
    assert seen.values("vllm:engine_sleep_state", sleep_state="awake") == [1]
    assert {"abort", "error"} <= set(seen.by("finished_reason", "vllm:request_success_total"))
    assert "10.0" in seen.by("le", "vllm:e2e_request_latency_seconds_bucket")


def test_the_monitor_reads_what_vllm_counts(vllm: Engine) -> None:
    before = engine_facts(scrape("vLLM", f"{vllm.url}/metrics"))
    assert _status(vllm.url, {"model": "digits", "messages": QUESTION, "max_tokens": 2}) == 200
    after = engine_facts(scrape("vLLM", f"{vllm.url}/metrics"))
    assert (after.finished - before.finished, after.lost, after.rejections - before.rejections) == (1, 0, 0)
    assert after.latency[float("inf")] - before.latency[float("inf")] == 1
    assert after.started == before.started


def test_vllm_lets_the_monitor_sample_what_a_client_asks(vllm: Engine) -> None:
    place = Place(vllm.log.parent / "home" / "state" / "monitoring")
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (255, 255, 255)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which digit?"}]
    body = {"model": "digits", "messages": [{"role": "user", "content": content}], "max_tokens": 2}

    def rows() -> list[dict[str, object]]:
        return list(place.inputs.since(datetime.fromtimestamp(0, UTC)))

    assert _status(vllm.url, body) == 200
    asked = httpx.post(f"{vllm.url}/v1/chat/completions", json=body, headers={NAME_HEADER: "team-a"}, timeout=60)
    wait_until(lambda: bool(rows()), 10, lambda: AssertionError("no sample"), 0.05)
    (row,) = rows()  # the first one came through no front
    assert row["images"] == [{"megapixels": 96 * 64 / 1e6, "aspect": 1.5, "brightness": 1.0}]
    assert row["prompt_tokens"] == asked.json()["usage"]["prompt_tokens"]
    assert row["answer_tokens"] == 2
