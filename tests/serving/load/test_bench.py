"""What `vllm bench serve` said once, read again; and why such a run says nothing about the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config_load import Load, Slo
from pipelines.errors import EngineFailed
from pipelines.load_report import LoadRun, Traffic
from serving.load.bench import Target, arguments, read_result
from serving.load.watch import Watched

SAID: dict[str, Any] = json.loads(Path(__file__).with_name("bench_serve.json").read_text())
"""Of vLLM 0.32.0 on a CPU: 24 requests, four at once, eight tokens each, good below 200 ms."""

LOAD = Load(requests=24, output_tokens=8, slo=Slo(e2e_ms=200))
QUIET = Watched(kv_usage_peak=0.25, preemptions=2, lost=0, restarted=False)


def read(folder: Path, watched: Watched = QUIET, load: Load = LOAD, **changed: object) -> LoadRun:
    """The run, had the client said something else."""
    path = folder / "result.json"
    path.write_text(json.dumps({**SAID, **changed}))
    return read_result(path, load, watched)


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert (run.completed, run.failed, run.objections) == (24, 0, ())
    assert run.ttft_p50_ms == SAID["p50_ttft_ms"] < run.ttft_p99_ms == SAID["p99_ttft_ms"]
    assert run.e2e_p50_ms == pytest.approx(SAID["median_e2el_ms"])
    assert run.tpot_p50_ms < run.ttft_p50_ms < run.e2e_p50_ms
    assert run.requests_per_minute == pytest.approx(60 * 24 / SAID["duration"])
    assert run.ms_per_request == pytest.approx(1000 * SAID["duration"] / 24)
    assert run.output_tokens_per_second == pytest.approx(24 * 8 / SAID["duration"])
    assert run.good_share == 1
    assert run.goodput_per_minute == pytest.approx(run.requests_per_minute)
    assert (run.kv_usage_peak, run.preemptions, run.lost) == (0.25, 2, 0)


def test_goodput_is_the_share_of_all_requests(tmp_path: Path) -> None:
    assert read(tmp_path, request_goodput=18 / SAID["duration"]).good_share == 0.75
    assert read(tmp_path, request_goodput=None).good_share is None


@pytest.mark.parametrize(
    ("changed", "watched", "objection"),
    [
        ({"failed": 1, "completed": 23, "total_output_tokens": 184}, QUIET, "23 of 24 requests completed, 1 failed"),
        ({"total_output_tokens": 189}, QUIET, "answers have 189 tokens in all, not 192"),
        ({}, Watched(0.1, 0, 1, restarted=False), "the engine counted 1 aborted or failed requests"),
        ({}, Watched(0.1, 0, 0, restarted=True), "the engine was restarted meanwhile"),
    ],
)
def test_a_run_that_lost_something_is_invalid(
    changed: dict[str, object], watched: Watched, objection: str, tmp_path: Path
) -> None:
    assert read(tmp_path, watched, **changed).objections == (objection,)


def test_a_client_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({key: value for key, value in SAID.items() if key != "p50_ttft_ms"}))
    with pytest.raises(EngineFailed, match="has no 'p50_ttft_ms'"):
        read_result(path, LOAD, QUIET)


def told(traffic: Traffic, load: Load = LOAD) -> list[str]:
    """What the client is asked for."""
    target = Target("http://127.0.0.1:1", "m", Path("model"))
    return arguments(target, Path("data.jsonl"), traffic, load, 3, Path("out/result.json"))


def test_closed_and_open_loop_differ_in_how_requests_arrive() -> None:
    closed, open_loop = told(Traffic(concurrency=4)), told(Traffic(rate=2.5))
    assert closed[closed.index("--max-concurrency") + 1] == "4"
    assert "--request-rate" not in closed
    assert open_loop[open_loop.index("--request-rate") + 1] == "2.5"
    assert "--max-concurrency" not in open_loop


def test_the_service_level_is_told_in_the_clients_names() -> None:
    load = Load(slo=Slo(ttft_ms=500, e2e_ms=2000.5))
    asked = told(Traffic(concurrency=1), load)
    assert asked[asked.index("--goodput") + 1 :] == ["ttft:500", "e2el:2000.5"]
    assert "--goodput" not in told(Traffic(concurrency=1), Load())
