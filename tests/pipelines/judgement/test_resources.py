"""Slower or larger by how much: a ratio against what was measured alike."""

from __future__ import annotations

import math

import pytest

from pipelines.config_gate import Gate, Requirement
from pipelines.judgement.resources import measured_alike, resources
from pipelines.judgement.side import Side
from tests.pipelines.judgement.sides import answers, evaluation, report, side

RULES = Gate(requirements=(Requirement(slice="new", margin=0.1),), max_latency_ratio=1.2, max_memory_ratio=1.1)


def found(candidate: Side, reference: Side, rules: Gate = RULES) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.outcome, finding.reason) for finding in resources(rules, candidate, reference)}


def champion(**changes: object) -> Side:
    return side(answers("1"), "champion v1", evaluation(latency_p99_ms=100, peak_gib=2), **changes)


def candidate(**measured: object) -> Side:
    ours, base = evaluation(**measured), evaluation("base", latency_p99_ms=50, peak_gib=1)
    return Side("candidate", report(base, ours), ours, answers("1"))


def test_nothing_is_judged_unless_the_config_asks() -> None:
    assert found(candidate(), champion(), Gate(requirements=RULES.requirements)) == {}


@pytest.mark.parametrize(("latency", "outcome"), [(60, "pass"), (120, "pass"), (121, "fail")])
def test_latency_has_a_limit(latency: float, outcome: str) -> None:
    said = found(candidate(latency_p99_ms=latency), champion())
    assert said["latency"][0] == outcome
    assert (
        f"{latency} ms at the 99th percentile are {latency / 100:.2f} times the 100 of champion v1"
        in said["latency"][1]
    )
    assert said["memory"][0] == "pass"


def test_memory_has_a_limit() -> None:
    assert found(candidate(peak_gib=2.3), champion())["memory"] == (
        "fail",
        "2.3 GiB at the peak are 1.15 times the 2 of champion v1; gate.max_memory_ratio is 1.1",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": "vLLM 2"},
        {"concurrency": 1},
        {"concurrency": None},
        {"test_digest": "x" * 64},
        {"hardware": "another card"},
        {"flags": "g" * 64},
    ],
)
def test_what_was_measured_otherwise_gives_way_to_the_base(changed: dict[str, object]) -> None:
    assert not measured_alike(candidate().report, champion(**changed).report)
    outcome, reason = found(candidate(latency_p99_ms=100), champion(**changed))["latency"]
    assert outcome == "fail"  # twice the base, as fast as the champion
    assert "2.00 times the 50 of the base, as champion v1 was measured by another engine or load, or on" in reason


@pytest.mark.parametrize("untold", ["concurrency", "hardware", "flags"])
def test_reports_that_do_not_say_how_they_were_measured_are_not_alike(untold: str) -> None:
    assert not measured_alike(report(**{untold: None}), report(**{untold: None}))
    assert measured_alike(report(concurrency=8), report(concurrency=8))


def test_without_anything_measured_alike_it_is_an_objection() -> None:
    alone = side(answers("1"))
    said = found(alone, champion(concurrency=1))
    assert {outcome for outcome, _ in said.values()} == {"fail"}
    assert "nothing was measured of the base" in said["latency"][1]


@pytest.mark.parametrize("nonsense", [0, -1, math.nan])
def test_a_reference_that_took_no_time_is_an_objection(nonsense: float) -> None:
    reference = side(answers("1"), "champion v1", evaluation(latency_p99_ms=nonsense))
    assert found(candidate(), reference)["latency"][0] == "fail"


@pytest.mark.parametrize("nonsense", [0, -1, math.nan])
def test_a_candidate_that_was_not_measured_is_an_objection(nonsense: float) -> None:
    said = found(candidate(latency_p99_ms=nonsense, peak_gib=nonsense), champion())
    assert {outcome for outcome, _ in said.values()} == {"fail"}
    assert f"{nonsense:g} GiB at the peak was measured of the candidate; evaluate it again" in said["memory"][1]
