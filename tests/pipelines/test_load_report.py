"""Runs under load: an interval over runs, and no figure of a run that lost a request."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.config_load import Load, Slo
from pipelines.errors import EvaluationInvalid
from pipelines.load_report import LoadPoint, LoadReport, LoadRun, Traffic, student_interval, traffics


def a_run(rate: float = 600.0, *, objections: tuple[str, ...] = ()) -> LoadRun:
    """One run."""
    times = {f"{name}_{p}_ms": 10.0 for name in ("ttft", "tpot", "itl", "e2e") for p in ("p50", "p99")}
    counts: dict[str, Any] = {"completed": 10, "failed": 0, "preemptions": 0, "lost": 0}
    return LoadRun(
        **times, **counts, seconds=1, requests_per_minute=rate, output_tokens_per_second=80, good_share=None,
        goodput_per_minute=None, kv_usage_peak=0.1, objections=objections,
    )  # fmt: skip


def test_the_interval_over_runs_is_students() -> None:
    """The additional hours of sleep of Student's ten patients, and the interval that R's t.test gives for them."""
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = student_interval(hours)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-6), pytest.approx(2.4598858, abs=1e-6))
    assert found.runs == 10


def test_one_run_has_no_interval() -> None:
    found = student_interval([3.0])
    assert (found.mean, found.low, found.high) == (3.0, None, None)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_an_interval_holds_its_mean_and_moves_with_the_values(values: list[float], shift: float) -> None:
    found, moved = student_interval(values), student_interval([value + shift for value in values])
    assert found.low is not None
    assert found.high is not None
    assert moved.low is not None
    assert found.low <= found.mean <= found.high
    assert math.isclose(moved.low - found.low, shift, rel_tol=1e-6, abs_tol=1e-3)


def test_a_point_gives_figures_over_its_runs() -> None:
    point = LoadPoint(traffic=Traffic(concurrency=8), runs=(a_run(600), a_run(620), a_run(640)))
    found = point.over_runs("requests_per_minute")
    assert (found.mean, found.runs) == (620, 3)
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(4.30265 * 20 / math.sqrt(3), rel=1e-4)


def test_a_point_with_a_failure_gives_none() -> None:
    runs = (a_run(), a_run(objections=("9 of 10 requests completed, 1 failed",)), a_run())
    point = LoadPoint(traffic=Traffic(concurrency=8), runs=runs)
    with pytest.raises(EvaluationInvalid, match="concurrency-8 is invalid: 9 of 10"):
        point.over_runs("e2e_p50_ms")
    report = LoadReport(engine="vLLM", load=Load(), points=(point,), peak_gib=None)
    assert report.objections == ("concurrency-8: 9 of 10 requests completed, 1 failed",)


def test_points_are_found_by_their_traffic() -> None:
    load = Load(concurrencies=(1, 16, 4), rates=(2.5,))
    points = tuple(LoadPoint(traffic=traffic, runs=(a_run(),)) for traffic in traffics(load))
    assert [point.traffic.label for point in points] == ["concurrency-1", "concurrency-16", "concurrency-4", "rate-2.5"]
    report = LoadReport(engine="vLLM", load=load, points=points, peak_gib=None)
    assert report.at(4) is points[2]
    assert report.at(8) is None
    assert report.fullest is points[1]


def test_a_load_without_a_point_and_a_level_without_a_limit_are_refused() -> None:
    with pytest.raises(ValidationError, match="no point to measure"):
        Load(concurrencies=())
    with pytest.raises(ValidationError, match="above 0"):
        Load(rates=(0.0,))
    with pytest.raises(ValidationError, match="say ttft_ms"):
        Slo()
