"""What vLLM and Caddy count, read from the metrics that they export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import EngineFailed, Unreachable
from pipelines.monitoring.snapshot import EngineFacts, FrontFacts
from serving.client import LOST

PATIENCE = 10.0
"""Seconds for an answer: an engine under full load may be slow to tell."""


@dataclass(frozen=True)
class Scrape:
    """The metrics of one address."""

    url: str
    families: Sequence[Metric]

    def values(self, name: str, **labels: str) -> list[float]:
        """Of every series with this name and these labels."""
        return [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float:
        """Their sum.

        Raises:
            EngineFailed: There is none: an unknown is never taken for zero.
        """
        if not (found := self.values(name, **labels)):
            raise EngineFailed(f"{self.url} has no {name}; is this the program that we test with?")
        return sum(found)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums by the value of one label."""
        sums: dict[str, float] = {}
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items() and label in sample.labels:
                    sums[sample.labels[label]] = sums.get(sample.labels[label], 0) + sample.value
        return sums


def scrape(service: str, url: str) -> Scrape:
    """Ask for metrics.

    Raises:
        EngineFailed: What comes is none.
        Unreachable: No answer comes.
    """
    try:
        response = httpx.get(url, timeout=PATIENCE, trust_env=False)
        response.raise_for_status()
        return Scrape(url, list(text_string_to_metric_families(response.text)))
    except httpx.HTTPError as error:
        raise Unreachable(service, url, repr(error)) from None
    except (ValueError, IndexError) as error:
        raise EngineFailed(f"{url} tells no metrics: {error}") from None


def engine_facts(seen: Scrape) -> EngineFacts:
    """What vLLM counts; of several engines behind one address, the sums and the fullest cache.

    Raises:
        EngineFailed: A count is missing.
    """
    usage = seen.values("vllm:kv_cache_usage_perc")
    if not usage:
        raise EngineFailed(f"{seen.url} has no vllm:kv_cache_usage_perc; is this the vLLM that we test with?")
    rejected = seen.values("vllm:admission_rejections_total")
    latency = seen.by("le", "vllm:e2e_request_latency_seconds_bucket")
    return EngineFacts(
        started=max(seen.values("process_start_time_seconds"), default=0.0),
        running=seen.total("vllm:num_requests_running"),
        waiting=seen.total("vllm:num_requests_waiting"),
        kv_usage=max(usage),
        preemptions=seen.total("vllm:num_preemptions_total"),
        finished=seen.total("vllm:request_success_total"),
        lost=sum(seen.total("vllm:request_success_total", finished_reason=reason) for reason in LOST),
        rejections=sum(rejected) if rejected else None,
        latency={float(bound): count for bound, count in latency.items()},
    )


def front_facts(seen: Scrape) -> FrontFacts:
    """What Caddy answered to clients who asked the model: they POST, and its own health checks do not."""
    return FrontFacts(answers=seen.by("code", "caddy_http_request_duration_seconds_count", method="POST"))
