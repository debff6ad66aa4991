"""Every alert fires when it must and is silent when it must be, by Prometheus' own evaluation; and says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config_monitoring import Monitoring
from pipelines.monitoring.conditions import CONDITIONS
from tests.pipelines.monitoring.programs import MONITORING, RULES, promtool

LATENCY = "vllm:e2e_request_latency_seconds"

Series = dict[str, str]
"""Values a minute, in promtool's notation, by series."""


@dataclass(frozen=True)
class Case:
    """What is there; the alert is looked for after so many minutes."""

    fires: Series
    quiet: Series
    minutes: int = 30


def of(job: str, name: str, values: str, /, **labels: str) -> Series:
    shown = ",".join(f'{label}="{text}"' for label, text in {"instance": job, "job": job, **labels}.items())
    return {f"{name}{{{shown}}}": values}


def ours(name: str, values: str, /, **labels: str) -> Series:
    return of("monitor", f"vlmops_{name}", values, **labels)


def card(name: str, values: str, /, **labels: str) -> Series:
    return ours(f"gpu_{name}", values, gpu="0", name="card", uuid="u", **labels)


def vllm(name: str, values: str, /, **labels: str) -> Series:
    return of("vllm", f"vllm:{name}", values, **labels)


def state(name: str, values: str) -> Series:
    return ours("service_state", values, state=name)


def latency(slow: int) -> Series:
    """So many of 100 answers a minute take more than 10 s."""
    fast = of("vllm", f"{LATENCY}_bucket", f"0+{100 - slow}x800", le="10.0")
    return fast | of("vllm", f"{LATENCY}_count", "0+100x800")


def finished(aborts: int) -> Series:
    stopped = vllm("request_success_total", "0+100x60", finished_reason="stop")
    return stopped | vllm("request_success_total", f"0+{aborts}x60", finished_reason="abort")


def answers(failed: int) -> Series:
    name = "caddy_http_request_duration_seconds_count"
    good = of("caddy", name, "0+100x60", method="POST", code="200")
    return good | of("caddy", name, f"0+{failed}x60", method="POST", code="503")


def kv(usage: float, waiting: int) -> Series:
    return vllm("kv_cache_usage_perc", f"{usage}x60") | vllm("num_requests_waiting", f"{waiting}x60")


def memory(used: int) -> Series:
    return card("memory_used_bytes", f"{used}x60") | card("memory_total_bytes", "100x60")


def disk(free: int) -> Series:
    return ours("disk_free_bytes", f"{free}x60", disk="home") | ours("disk_wanted_bytes", "20x60")


def backup(times: str) -> Series:
    return ours("backup_timestamp_seconds", times) | ours("backup_wanted_seconds", "600x60")


def promoted(version: int) -> Series:
    return ours("champion_version", f"{version}x60")


def transitions(name: str, values: str) -> Series:
    return ours("deploy_transitions", values, state=name)


def probed(times: str) -> Series:
    return ours("probe_last_passed_timestamp_seconds", times) | state("serving", "1x120")


def unread(source: str, service: str) -> Series:
    return ours("monitor_source_known", "0x60", source=source) | state(service, "1x60")


def rejected(values: str) -> Series:
    return vllm("admission_rejections_total", values, reason="num_requests")


def awake(values: str) -> Series:
    return vllm("engine_sleep_state", values, sleep_state="awake")


CASES = {
    "ServiceDown": Case(state("down", "1x60") | promoted(3), state("stopped", "1x60") | promoted(0)),
    "ServiceHolding": Case(state("holding", "1x60"), state("holding", "0x20 1x10 0x30")),
    "EngineCrashed": Case(transitions("crashed", "2x20 3x40"), transitions("crashed", "3x60")),
    "PromotionUndone": Case(transitions("undo", "0x20 1x40"), transitions("serving", "0x20 1x40")),
    "GoldenProbeFailed": Case(ours("probe_passed", "1x10 0x50"), ours("probe_passed", "1x28 0x2 1x30")),
    "GoldenProbeStale": Case(probed("0x120"), probed("0+60x120"), 90),
    "MonitorSilent": Case({}, ours("monitor_last_look_timestamp_seconds", "0+60x60")),
    "SourceUnknown": Case(unread("engine", "serving"), unread("engine", "stopped")),
    "TargetDown": Case(of("vllm", "up", "0x60"), of("vllm", "up", "1x60")),
    "KvCacheFull": Case(kv(0.97, waiting=4), kv(0.97, waiting=0)),
    "Preemptions": Case(vllm("num_preemptions_total", "0x20 1+1x40"), vllm("num_preemptions_total", "7x60")),
    "RequestsLost": Case(finished(aborts=3), finished(aborts=0)),
    "RequestsRejected": Case(rejected("0+5x60"), rejected("5x60")),
    "FrontErrors": Case(answers(failed=20), answers(failed=1)),
    "LatencyBudgetBurnsFast": Case(latency(slow=20), latency(slow=10), 120),
    "LatencyBudgetBurnsSlow": Case(latency(slow=8), latency(slow=4), 420),
    "EngineAsleep": Case(awake("0x60"), awake("1x60")),
    "GpuThrottled": Case(
        card("throttled", "1x60", reason="hw_thermal"), card("throttled", "1x60", reason="sw_power_cap")
    ),
    "GpuXid": Case(card("xid_errors", "1x60", xid="79"), card("xid_errors", "0x60", xid="all")),
    "GpuMemoryErrors": Case(card("ecc_uncorrected_errors", "1x60"), card("ecc_uncorrected_errors", "0x60")),
    "GpuUnknown": Case(ours("gpu_unknown", "1x60"), ours("gpu_unknown", "0x60") | ours("gpu_present", "0x60")),
    "GpuSharedWithOthers": Case(card("processes", "2x60", owner="other"), card("processes", "2x60", owner="unknown")),
    "GpuMemoryHigh": Case(memory(used=95), memory(used=85)),
    "GpuTemperatureHigh": Case(card("temperature_celsius", "88x60"), card("temperature_celsius", "80x60")),
    "GpuUtilizationHigh": Case(card("utilization_ratio", "0.99x60"), card("utilization_ratio", "0.99x20 0.5x40")),
    "DiskSpaceLow": Case(disk(free=10), disk(free=30)),
    "BackupTooOld": Case(backup("0x60"), backup("0+60x60")),
    "InputChanged": Case(ours("input_changed", "1x60", feature="aspect"), ours("input_psi", "9x60", feature="aspect")),
}
"""One case that must fire and one that must not, close to it, for each alert."""


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_rules_are_read_as_they_are_by_prometheus() -> None:
    checked = promtool("check", "config", MONITORING / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("rules found") == len(RULES) >= 5


def test_every_alert_has_a_case() -> None:
    assert len(ALERTS) >= 25
    assert set(CASES) == set(ALERTS)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What promtool says of each alert; asked once, with no more rules than the alert needs."""
    folder = tmp_path_factory.mktemp("rules")
    for alert, case in CASES.items():
        (folder / f"{alert}.yml").write_text(yaml.safe_dump(unit_test(alert, case)))
    said = promtool("test", "rules", *sorted(folder.iterdir())).stdout
    parts = said.split(f"Unit Testing:  {folder}/")[1:]
    return dict(part.split(".yml\n", 1) for part in parts)


def unit_test(alert: str, case: Case) -> dict[str, Any]:
    """In promtool's form."""
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": key, "values": values} for key, values in series.items()],
            "promql_expr_test": [
                {"expr": firing, "eval_time": f"{case.minutes}m", "exp_samples": [{"labels": "{}", "value": count}]}
            ],
        }
        for series, count in ((case.fires, 1), (case.quiet, 0))
    ]
    needed = [path for path in RULES if path.stem == "recording" or f"alert: {alert}\n" in path.read_text()]
    assert len(needed) == 2
    return {"rule_files": [str(path) for path in needed], "tests": tests}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_must_and_only_then(judged: dict[str, str], alert: str) -> None:
    assert judged[alert].strip() == "SUCCESS"


@pytest.mark.parametrize("source", ["service", "disk", "backup"])
def test_what_must_be_known_always_is_missed_where_nothing_serves_as_well(tmp_path: Path, source: str) -> None:
    known = ours("monitor_source_known", "1x60", source=source)
    case = Case(unread(source, "stopped"), known | state("stopped", "1x60"))
    (tmp_path / "case.yml").write_text(yaml.safe_dump(unit_test("SourceUnknown", case)))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "case.yml").stdout


def test_a_monitor_that_hangs_is_told_of_by_the_same_name() -> None:
    from pipelines.monitoring.conditions import SILENT, silent

    moment = datetime(2026, 11, 24, 12, tzinfo=UTC)
    (told,) = silent(moment - SILENT - timedelta(seconds=1), moment)
    assert silent(moment - SILENT, moment) == []
    rule = ALERTS[told.name]
    assert (rule["labels"]["severity"], rule["annotations"]["summary"]) == (told.severity, told.summary)
    assert f"> {SILENT.total_seconds():.0f}" in rule["expr"]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{alert.lower()}"


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_embedded_stack_means_the_same_by_the_same_name(name: str) -> None:
    severity, summary, _ = CONDITIONS[name]
    assert ALERTS[name]["labels"]["severity"] == severity
    assert ALERTS[name]["annotations"]["summary"] == summary


def test_only_what_the_card_itself_complains_of_wakes_anybody() -> None:
    usual = {"GpuMemoryHigh", "GpuTemperatureHigh", "GpuUtilizationHigh"}
    assert {name: ALERTS[name]["labels"]["severity"] for name in usual} == dict.fromkeys(usual, "info")


def test_the_service_level_of_the_rules_is_the_one_of_the_config() -> None:
    limits = Monitoring()
    recorded = [rule["expr"] for rule in rules() if rule.get("record", "").startswith("vlmops:slow_ratio")]
    assert len(recorded) == 4
    assert all(f'le="{limits.slo_seconds:.1f}"' in expression for expression in recorded)
    for name in ("LatencyBudgetBurnsFast", "LatencyBudgetBurnsSlow"):
        assert f"* {1 - limits.slo_share:.2g}" in ALERTS[name]["expr"]
