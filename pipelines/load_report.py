"""What an engine did under load: runs of `vllm bench serve`, and what holds over several of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from pipelines.artifact import Artifact
from pipelines.config_load import Load
from pipelines.errors import EvaluationInvalid


class Interval(Artifact):
    """A mean over runs, with its two-sided 95 % interval."""

    mean: float
    low: float | None
    """None: one run says nothing about how runs differ."""

    high: float | None
    runs: int


class Traffic(Artifact):
    """How requests arrive: so many in flight, or so many a second."""

    concurrency: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """Such as `concurrency-8` or `rate-2.5`."""
        return f"rate-{self.rate:g}" if self.concurrency is None else f"concurrency-{self.concurrency}"


class LoadRun(Artifact):
    """One run. Times are of the client, in milliseconds; the warm-up is not in them."""

    completed: int
    failed: int
    seconds: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    e2e_p50_ms: float
    e2e_p99_ms: float
    requests_per_minute: float
    output_tokens_per_second: float
    good_share: float | None
    """Of the requests, those within the SLO; None without one."""

    goodput_per_minute: float | None
    """Requests within the SLO."""

    kv_usage_peak: float
    """Of the KV cache, 0 to 1: the most that was seen, looking about once a second."""

    preemptions: int
    lost: int
    """Requests that the engine counted as aborted or failed."""

    objections: tuple[str, ...] = ()
    """Why it says nothing about the engine; empty when it is valid."""

    @property
    def ms_per_request(self) -> float:
        """Of the whole run: less than a request takes where several are in flight."""
        return 60_000 / self.requests_per_minute


class LoadPoint(Artifact):
    """The runs under one kind of traffic."""

    traffic: Traffic
    runs: tuple[LoadRun, ...] = Field(min_length=1)

    @property
    def objections(self) -> tuple[str, ...]:
        """Of all runs; empty when the point is valid."""
        return tuple(objection for run in self.runs for objection in run.objections)

    def over_runs(self, name: str) -> Interval:
        """A figure of the runs by its name, such as `e2e_p50_ms`.

        Raises:
            EvaluationInvalid: A run lost requests: what is left of it is no measurement.
        """
        if self.objections:
            raise EvaluationInvalid(f"load at {self.traffic.label} is invalid: {'; '.join(self.objections)}")
        return student_interval([getattr(run, name) for run in self.runs])


class LoadReport(Artifact):
    """One engine under load."""

    engine: str
    """Engine and version."""

    load: Load
    """What was asked for."""

    points: tuple[LoadPoint, ...]
    peak_gib: float | None
    """The most memory seen: of the whole card where it serves on one, else of the engine's processes. None: nobody
    watched."""

    @property
    def objections(self) -> tuple[str, ...]:
        """Of all points; empty when everything is valid."""
        return tuple(f"{point.traffic.label}: {text}" for point in self.points for text in point.objections)

    def at(self, concurrency: int) -> LoadPoint | None:
        """The closed-loop point with so many requests in flight, or None when it was not measured."""
        return next((point for point in self.points if point.traffic.concurrency == concurrency), None)

    @property
    def fullest(self) -> LoadPoint | None:
        """The closed-loop point with the most requests in flight."""
        closed = [point for point in self.points if point.traffic.concurrency is not None]
        return max(closed, key=lambda point: point.traffic.concurrency or 0, default=None)


def traffics(load: Load) -> tuple[Traffic, ...]:
    """The points that a config asks for, closed loop first."""
    closed = tuple(Traffic(concurrency=number) for number in load.concurrencies)
    return (*closed, *(Traffic(rate=rate) for rate in load.rates))


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a few runs with its two-sided interval: mean +- t(1 - alpha / 2, n - 1) s / sqrt(n).

    Source: Student, The probable error of a mean, Biometrika 6 (1908).

    Args:
        values: One of each run; at least one.
    """
    mean, runs = statistics.fmean(values), len(values)
    if runs == 1:
        return Interval(mean=mean, low=None, high=None, runs=1)
    from scipy.stats import t  # half a second that a command without load need not wait for

    half = float(t.ppf((1 + confidence) / 2, runs - 1)) * statistics.stdev(values) / math.sqrt(runs)
    return Interval(mean=mean, low=mean - half, high=mean + half, runs=runs)
