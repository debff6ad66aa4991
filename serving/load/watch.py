"""What an engine counts while it is under load."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import EngineFailed, Unreachable

PATIENCE = 60.0
"""Seconds for an answer: an engine under full load may be slow to tell its counters."""

LOST = ("abort", "error")
"""Reasons by which the engine finishes a request that was not answered."""


@dataclass(frozen=True)
class Counters:
    """The engine's own figures, at one moment."""

    kv_usage: float
    """Of the KV cache, 0 to 1."""

    preemptions: int
    lost: int
    started: float
    """Start of its process, in seconds since 1970."""


@dataclass(frozen=True)
class Watched:
    """What happened between two moments."""

    kv_usage_peak: float
    preemptions: int
    lost: int
    restarted: bool


class Watch:
    """Looks at the counters now, and whenever it is asked to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._first = self._last = counters(url)
        self._kv_usage_peak = 0.0

    def look(self) -> None:
        """Look again."""
        self._last = counters(self._url)
        self._kv_usage_peak = max(self._kv_usage_peak, self._last.kv_usage)

    def end(self) -> Watched:
        """Look a last time; what happened since the first."""
        self.look()
        return Watched(
            kv_usage_peak=self._kv_usage_peak,
            preemptions=self._last.preemptions - self._first.preemptions,
            lost=self._last.lost - self._first.lost,
            restarted=self._last.started != self._first.started,
        )


def counters(url: str) -> Counters:
    """The engine's figures now; of several engines behind one address, the fullest cache and the sums.

    Raises:
        Unreachable: It does not answer.
        EngineFailed: A figure is missing: an unknown is never taken for zero.
    """
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(_metrics(url)):
        for sample in family.samples:
            key = f"{sample.name}:{sample.labels.get('finished_reason', '')}"
            found.setdefault(key, []).append(sample.value)
    try:
        return Counters(
            kv_usage=max(found["vllm:kv_cache_usage_perc:"]),
            preemptions=int(sum(found["vllm:num_preemptions_total:"])),
            lost=int(sum(sum(found[f"vllm:request_success_total:{reason}"]) for reason in LOST)),
            started=max(found["process_start_time_seconds:"]),
        )
    except KeyError as missing:
        raise EngineFailed(f"{url}/metrics has no {missing}; is this the vLLM that we test with?") from None


def _metrics(url: str) -> str:
    try:
        response = httpx.get(f"{url}/metrics", timeout=PATIENCE, trust_env=False)
    except httpx.HTTPError as error:
        raise Unreachable("the engine", url, repr(error)) from None
    return response.text
