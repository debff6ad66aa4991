"""`vllm bench serve`: its argument list, and what its result says.

Written against vLLM 0.26 and 0.32, whose options and fields are the same as far as they are used here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config_load import Load, Slo
from pipelines.errors import EngineFailed
from pipelines.load_report import LoadRun, Traffic
from serving.load.watch import Watched
from serving.measure import counted

CLIENT = (sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve")
"""The program, of this environment."""

TIMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}
"""Our names of the times, and vLLM's."""

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
"""Of the client: it fetches nothing, and goes to loopback by no proxy."""


@dataclass(frozen=True)
class Target:
    """The engine that is put under load."""

    url: str
    name: str
    """Of the model, as requests say it."""

    tokenizer: Path
    """The model's folder: without its tokenizer the client leaves out the times of tokens."""


def arguments(target: Target, dataset: Path, traffic: Traffic, load: Load, seed: int, result: Path) -> list[str]:
    """The argument list of one run.

    Args:
        target: The engine.
        dataset: Requests, as `Supply.write` leaves them.
        traffic: How they arrive.
        load: Their number and the length of answers.
        seed: Decides when requests of the open loop arrive.
        result: Where the client leaves its JSON.
    """
    flags: dict[str, object] = {
        "--backend": "openai-chat",
        "--base-url": target.url,
        "--endpoint": "/v1/chat/completions",
        "--model": target.name,
        "--tokenizer": target.tokenizer,
        "--dataset-name": "custom_image",
        "--dataset-path": dataset,
        "--num-prompts": load.requests,
        "--custom-output-len": load.output_tokens,
        "--temperature": 0,
        "--seed": seed,
        "--ready-check-timeout-sec": 0,  # its probe would be the first measured picture, and put it into the caches
        "--percentile-metrics": ",".join(TIMES.values()),
        "--metric-percentiles": "50,99",
        "--result-dir": result.parent,
        "--result-filename": result.name,
        **({"--request-rate": traffic.rate} if traffic.rate else {"--max-concurrency": traffic.concurrency}),
    }
    switches = ["--ignore-eos", "--no-oversample", "--disable-shuffle", "--disable-tqdm", "--save-result"]
    return [*CLIENT, *(str(part) for flag in flags.items() for part in flag), *switches, *_goodput(load.slo)]


def _goodput(slo: Slo | None) -> list[str]:
    wanted = {"ttft": slo.ttft_ms, "tpot": slo.tpot_ms, "e2el": slo.e2e_ms} if slo else {}
    told = [f"{name}:{limit:g}" for name, limit in wanted.items() if limit is not None]
    return ["--goodput", *told] if told else []


def read_result(path: Path, load: Load, watched: Watched) -> LoadRun:
    """A run by the client's result and by what the engine counted meanwhile.

    Raises:
        EngineFailed: The result lacks a field: the client is of a version that we do not know.
    """
    try:
        return _run(json.loads(path.read_text()), load, watched)
    except KeyError as missing:
        raise EngineFailed(f"{path} has no {missing}; is this the vLLM that we test with?") from None


def _run(said: dict[str, Any], load: Load, watched: Watched) -> LoadRun:
    times = {f"{ours}_{p}_ms": said[f"{p}_{theirs}_ms"] for ours, theirs in TIMES.items() for p in ("p50", "p99")}
    goodput = said["request_goodput"]  # requests a second
    return LoadRun(
        completed=said["completed"],
        failed=said["failed"],
        seconds=said["duration"],
        **times,
        requests_per_minute=60 * said["request_throughput"],
        output_tokens_per_second=said["output_throughput"],
        good_share=None if goodput is None else round(goodput * said["duration"]) / load.requests,
        goodput_per_minute=None if goodput is None else 60 * goodput,
        kv_usage_peak=watched.kv_usage_peak,
        preemptions=watched.preemptions,
        lost=watched.lost,
        objections=tuple(_objections(said, load, watched)),
    )


def _objections(said: dict[str, Any], load: Load, watched: Watched) -> list[str]:
    """Why a run says nothing. The client takes an answer that broke off for one that is complete: tokens tell."""
    found = []
    if said["failed"] or said["completed"] != load.requests:
        found.append(f"{said['completed']} of {load.requests} requests completed, {said['failed']} failed")
    expected = said["completed"] * load.output_tokens
    if said["total_output_tokens"] != expected:
        found.append(f"answers have {said['total_output_tokens']} tokens in all, not {expected}")
    return [*found, *counted(watched.lost, restarted=watched.restarted)]
