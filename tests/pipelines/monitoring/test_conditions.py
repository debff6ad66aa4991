"""What is wrong, by a snapshot; and that what is unknown is neither well nor an alarm of its own making."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipelines.config_monitoring import Monitoring
from pipelines.monitoring.between import happened
from pipelines.monitoring.conditions import CONDITIONS, JUDGED_FROM, standing, unjudged
from pipelines.monitoring.series import HELP, others, ours
from pipelines.monitoring.show import table_of
from pipelines.monitoring.snapshot import (
    Card,
    Disk,
    EngineFacts,
    FrontFacts,
    ProbeFacts,
    RunFacts,
    ServiceFacts,
    Snapshot,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LIMITS = Monitoring()
CARD = Card(
    index=0, name="card", uuid="u", memory_used_bytes=90, memory_total_bytes=100, utilization=1.0,
    temperature_celsius=95, power_watts=700, power_limit_watts=700, throttled=("sw_power_cap",), ecc_uncorrected=0,
    xids={}, processes={"engine": 1, "run": 0, "other": 0, "unknown": 2},
)  # fmt: skip
ENGINE = EngineFacts(
    started=1, running=64, waiting=0, kv_usage=0.99, preemptions=5, finished=100, lost=1, rejections=2,
    latency={0.5: 10, 10.0: 95, 15.0: 100, float("inf"): 100},
)  # fmt: skip
WELL = Snapshot(
    time=NOW,
    service=ServiceFacts(state="serving", version=3, digest="d", strategy="restart", champion=3),
    engine=ENGINE,
    front=FrontFacts(answers={"200": 100}),
    gpu_state="cards",
    cards=(CARD,),
    probe=ProbeFacts(time=NOW, version=3, asked=8, matched=8, passed=True, seconds=1, last_passed=NOW),
    disks=(Disk(name="home", free_bytes=2**40, total_bytes=2**41),),
    backup=NOW - timedelta(hours=1),
    runs=RunFacts(runs=2, decisions={"pass": 1, "fail": 1}, last_outcome="pass"),
)
BEFORE = WELL.model_copy(update={"time": NOW - timedelta(minutes=1)})


def names(now: Snapshot, *earlier: Snapshot) -> set[str]:
    return {condition.name for condition in standing(earlier or (BEFORE,), now, LIMITS)}


def engine(**changes: Any) -> dict[str, Any]:
    return {"engine": ENGINE.model_copy(update=changes)}


def cards(**changes: Any) -> dict[str, Any]:
    return {"cards": (CARD.model_copy(update=changes),)}


def service(**changes: Any) -> dict[str, Any]:
    assert WELL.service is not None
    return {"service": WELL.service.model_copy(update=changes)}


def probe(**changes: Any) -> dict[str, Any]:
    assert WELL.probe is not None
    return {"probe": WELL.probe.model_copy(update=changes)}


@pytest.mark.parametrize("changes", [
    service(state="holding", since=NOW - timedelta(minutes=19)),
    service(last={"crashed": NOW - timedelta(minutes=16), "undo": NOW - timedelta(hours=2), "serving": NOW}),
    probe(last_passed=NOW - timedelta(minutes=59)),
    {"front": FrontFacts(answers={"200": 196, "502": 4})},
    {"front": FrontFacts(answers={"502": 50})},  # of a front that was started anew
])  # fmt: skip
def test_what_is_close_to_a_fault_is_none(changes: dict[str, Any]) -> None:
    assert names(WELL.model_copy(update=changes)) == set()


def test_every_condition_is_judged_from_a_source_or_always() -> None:
    judged = [name for names in JUDGED_FROM.values() for name in names]
    assert sorted([*judged, "SourceUnknown", "GpuUnknown"]) == sorted(CONDITIONS)
    assert unjudged(WELL) == set()
    assert unjudged(WELL.model_copy(update={"unknown": {"disk": "gone"}})) == {"DiskSpaceLow"}


def test_full_load_on_a_hot_full_card_is_well() -> None:
    assert names(WELL) == set()


@pytest.mark.parametrize(("name", "changes"), [
    ("ServiceDown", {"service": ServiceFacts(state="down", champion=3)}),
    ("ServiceHolding", service(state="holding", since=NOW - timedelta(minutes=21))),
    ("EngineCrashed", service(last={"crashed": NOW - timedelta(minutes=14)})),
    ("PromotionUndone", service(last={"undo": NOW - timedelta(minutes=59)})),
    ("SourceUnknown", {"unknown": {"engine": "does not answer"}}),
    ("SourceUnknown", {"service": None, "unknown": {"service": "serving.json says nothing to this release"}}),
    ("SourceUnknown", {"disks": (), "unknown": {"disk": "stale file handle"}}),
    ("GoldenProbeStale", probe(last_passed=NOW - timedelta(minutes=61))),
    ("GoldenProbeStale", probe(last_passed=None)),
    ("FrontErrors", {"front": FrontFacts(answers={"200": 190, "502": 10})}),
    ("GoldenProbeFailed", {"probe": WELL.probe and WELL.probe.model_copy(update={"passed": False, "matched": 0})}),
    ("KvCacheFull", engine(waiting=3)),
    ("Preemptions", engine(preemptions=6)),
    ("RequestsLost", engine(finished=110, lost=3)),
    ("RequestsRejected", engine(rejections=3)),
    ("LatencyBudgetBurnsFast", engine(latency={0.5: 10, 10.0: 105, 15.0: 120, float("inf"): 120})),
    ("GpuThrottled", cards(throttled=("sw_power_cap", "hw_thermal"))),
    ("GpuXid", cards(xids={79: 1})),
    ("GpuMemoryErrors", cards(ecc_uncorrected=1)),
    ("GpuUnknown", {"gpu_state": "unknown", "cards": ()}),
    ("GpuSharedWithOthers", cards(processes={"engine": 1, "other": 1})),
    ("DiskSpaceLow", {"disks": (Disk(name="home", free_bytes=2**30, total_bytes=2**41),)}),
    ("BackupTooOld", {"backup": NOW - timedelta(hours=49)}),
    ("BackupTooOld", {"backup": None}),
])  # fmt: skip
def test_each_fault_alone_has_its_name_and_its_page(name: str, changes: dict[str, Any]) -> None:
    found = standing((BEFORE,), WELL.model_copy(update=changes), LIMITS)
    assert [condition.name for condition in found] == [name]
    assert found[0].runbook == f"docs/operations.md#{name.lower()}"
    assert found[0].detail


def test_what_is_unknown_is_no_alarm_of_another_kind() -> None:
    blind = cards(throttled=None, xids=None, ecc_uncorrected=None, processes=None, memory_used_bytes=None)
    assert names(WELL.model_copy(update=blind)) == set()
    nothing = Snapshot(time=NOW, gpu_state="none", unknown={"backup": "cannot be read", "engine": "none runs"})
    assert names(nothing) == {"SourceUnknown"}


def test_before_the_first_promotion_that_nothing_serves_is_no_fault() -> None:
    stopped = ServiceFacts(state="stopped")
    assert names(WELL.model_copy(update={"service": stopped})) == set()


def test_what_was_counted_before_a_restart_is_no_fall() -> None:
    again = engine(started=2, finished=0, lost=0, preemptions=0, rejections=0, latency={})
    now = WELL.model_copy(update=again)
    assert happened(BEFORE, now, 10) is None
    assert names(now) == set()


def test_what_is_lost_at_once_is_found_by_the_looks_after_too() -> None:
    burst = WELL.model_copy(
        update=engine(finished=110, lost=9) | {"front": FrontFacts(answers={"200": 100, "502": 20})}
    )
    quiet = burst.model_copy(update={"time": NOW + timedelta(minutes=1)})
    assert names(burst) == names(quiet, BEFORE, burst) == {"RequestsLost", "FrontErrors"}
    assert names(quiet, burst) == set()
    again = WELL.model_copy(update=engine(started=2, finished=10, lost=5))
    later = WELL.model_copy(update=engine(started=2, finished=20, lost=5))
    assert names(later, BEFORE, again) == set()  # nothing since the new engine's first look
    assert names(again.model_copy(update=engine(started=2, finished=20, lost=9)), BEFORE, again) == {"RequestsLost"}


def test_the_share_of_slow_answers_is_of_those_that_came_in_between() -> None:
    now = WELL.model_copy(update=engine(latency={0.5: 10, 10.0: 98, 15.0: 104, float("inf"): 104}))
    between = happened(BEFORE, now, 10)
    assert between is not None
    assert between.slow_share == pytest.approx(0.25)
    quiet = happened(BEFORE, WELL, 10)
    assert quiet is not None
    assert quiet.slow_share is None


def test_every_series_has_its_help_and_those_of_cards_their_labels() -> None:
    values = ours(WELL.model_copy(update=cards(xids={79: 2})), LIMITS)
    assert {value.name for value in values} <= set(HELP)
    series = {value.series: value.value for value in values}
    assert series['vlmops_service_state{state="serving"}'] == 1
    assert series['vlmops_gpu_throttled{gpu="0",name="card",uuid="u",reason="sw_power_cap"}'] == 1
    assert series['vlmops_gpu_xid_errors{gpu="0",name="card",uuid="u",xid="79"}'] == 2
    assert series['vlmops_gate_decisions{outcome="fail"}'] == 1
    assert {value.name for value in others(WELL)} >= {"vllm:kv_cache_usage_perc"}


def test_what_a_card_does_not_tell_has_no_series_rather_than_zero() -> None:
    blind = cards(temperature_celsius=None, power_watts=None, xids=None, throttled=None, ecc_uncorrected=None)
    told = {value.name for value in ours(WELL.model_copy(update=blind), LIMITS)}
    assert not told & {
        "vlmops_gpu_temperature_celsius", "vlmops_gpu_power_watts", "vlmops_gpu_xid_errors", "vlmops_gpu_throttled",
        "vlmops_gpu_ecc_uncorrected_errors",
    }  # fmt: skip


def test_a_person_reads_what_is_unknown_and_what_to_do() -> None:
    from rich.console import Console

    now = WELL.model_copy(update={"unknown": {"engine": "does [not] answer"}, "gpu_state": "none", "cards": ()})
    console = Console(record=True, width=200, file=None)
    with console.capture() as caught:
        console.print(table_of(now, standing((), now, LIMITS)))
    shown = caught.get()
    for wanted in ("no GPU here", "unknown: does [not] answer", "SourceUnknown", "docs/operations.md#sourceunknown"):
        assert wanted in shown


@pytest.mark.parametrize(("minutes", "told"), [(0, False), (14, False), (16, True), (6000, True)])
def test_a_person_reads_that_nobody_looks_any_more(minutes: int, told: bool) -> None:
    now = Snapshot(time=datetime.now(UTC) - timedelta(minutes=minutes), gpu_state="none")
    assert ("nobody looks" in str(table_of(now, []).title)) is told
