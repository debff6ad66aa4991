"""A snapshot as series: names, labels, values. What Prometheus reads and what the history keeps are both made of these.

What vLLM, Caddy and the keys service export themselves is not repeated for Prometheus, which asks them; the history has
a few of their figures, under their own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pipelines.config_monitoring import Monitoring
from pipelines.monitoring.snapshot import Card, Snapshot

STATES = ("serving", "holding", "unhealthy", "unreachable", "down", "stopped")
SOURCES = ("service", "engine", "front", "gpu", "probe", "disk", "backup", "runs", "inputs")

THROTTLE_REASONS = ("sw_power_cap", "hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal", "sync_boost")
"""Why a card's clocks are lower than they could be; idleness and a clock that somebody chose are none of ours."""

HELP = {
    "vlmops_monitor_last_look_timestamp_seconds": "When the monitor looked last.",
    "vlmops_monitor_source_known": "Whether a source could be read.",
    "vlmops_service_state": "1 for the state that the service is in.",
    "vlmops_deploy_info": "The version in service.",
    "vlmops_served_version": "The version in service; 0 for none.",
    "vlmops_champion_version": "The version that passed its watch last; 0 for none.",
    "vlmops_deploy_transitions": "Lines of the deploy log, by state.",
    "vlmops_runs": "Runs in the home.",
    "vlmops_gate_decisions": "Decisions of the gate, by outcome.",
    "vlmops_probe_passed": "Whether the last golden probe passed.",
    "vlmops_probe_matched_ratio": "Golden answers that came again, of all.",
    "vlmops_probe_seconds": "How long the last golden probe took.",
    "vlmops_probe_last_passed_timestamp_seconds": "When a golden probe passed last; 0 for never.",
    "vlmops_gpu_present": "Whether there are cards that answer.",
    "vlmops_gpu_unknown": "Whether there is a driver whose cards do not answer.",
    "vlmops_gpu_memory_used_bytes": "Memory in use of a card.",
    "vlmops_gpu_memory_total_bytes": "Memory of a card.",
    "vlmops_gpu_utilization_ratio": "Share of the time in which some kernel ran.",
    "vlmops_gpu_temperature_celsius": "Temperature of a card.",
    "vlmops_gpu_power_watts": "Power that a card draws.",
    "vlmops_gpu_power_limit_watts": "Power that a card may draw.",
    "vlmops_gpu_throttled": "Whether a card's clocks are lowered, by reason.",
    "vlmops_gpu_ecc_uncorrected_errors": "Uncorrected memory errors of a card since the driver was loaded.",
    "vlmops_gpu_xid_errors": "Critical errors of a card since the monitor was started, by number.",
    "vlmops_gpu_processes": "Processes on a card, by owner.",
    "vlmops_disk_free_bytes": "Free space that the line may use.",
    "vlmops_disk_total_bytes": "Size of the file system.",
    "vlmops_disk_wanted_bytes": "Free space below which monitoring.disk_gib gives the alarm.",
    "vlmops_backup_timestamp_seconds": "When the last backup was made; 0 for never.",
    "vlmops_backup_wanted_seconds": "Age of a backup from which monitoring.backup_hours gives the alarm.",
    "vlmops_input_psi": "Population stability index of an input against the training set's. Input changed, no more.",
    "vlmops_input_ks": "Kolmogorov-Smirnov distance of an input from the training set's.",
    "vlmops_input_samples": "Samples of an input that were compared.",
    "vlmops_input_changed": "Whether an input counts as changed.",
    "vlmops_answer_ratio": "Share of the sampled answers that are schema_valid, or refused.",
}
"""Every series of ours, and what it says."""


@dataclass(frozen=True)
class Value:
    """One series at one moment."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """As Prometheus writes it."""
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in self.labels.items())
        return f"{self.name}{{{labels}}}" if labels else self.name


def ours(snapshot: Snapshot, limits: Monitoring) -> list[Value]:
    """The series that nobody else exports."""
    return [
        Value("vlmops_monitor_last_look_timestamp_seconds", snapshot.time.timestamp()),
        *(
            Value("vlmops_monitor_source_known", float(source not in snapshot.unknown), {"source": source})
            for source in SOURCES
        ),
        *_service(snapshot),
        *_probe(snapshot),
        Value("vlmops_gpu_present", float(snapshot.gpu_state == "cards")),
        Value("vlmops_gpu_unknown", float(snapshot.gpu_state == "unknown")),
        *(value for card in snapshot.cards for value in _card(card)),
        *_stored(snapshot, limits),
        *_inputs(snapshot),
    ]


def others(snapshot: Snapshot) -> list[Value]:
    """A few figures of vLLM and Caddy, under their own names, for the history."""
    found = []
    if (engine := snapshot.engine) is not None:
        found = [
            Value("vllm:num_requests_running", engine.running),
            Value("vllm:num_requests_waiting", engine.waiting),
            Value("vllm:kv_cache_usage_perc", engine.kv_usage),
            Value("vllm:num_preemptions_total", engine.preemptions),
            Value("vllm:request_success_total", engine.finished),
        ]
    if snapshot.front is not None:
        answers = snapshot.front.answers.items()
        found += [Value("caddy_http_request_duration_seconds_count", n, {"code": code}) for code, n in answers]
    return found


def _service(snapshot: Snapshot) -> Iterator[Value]:
    if (service := snapshot.service) is not None:
        for state in STATES:
            yield Value("vlmops_service_state", float(state == service.state), {"state": state})
        yield Value("vlmops_served_version", service.version or 0)
        yield Value("vlmops_champion_version", service.champion or 0)
        if service.version is not None:
            told = {"version": service.version, "digest": service.digest, "strategy": service.strategy}
            yield Value("vlmops_deploy_info", 1, {name: str(value) for name, value in told.items()})
        for state, count in service.transitions.items():
            yield Value("vlmops_deploy_transitions", count, {"state": state})
    if (runs := snapshot.runs) is not None:
        yield Value("vlmops_runs", runs.runs)
        for outcome, count in runs.decisions.items():
            yield Value("vlmops_gate_decisions", count, {"outcome": outcome})


def _probe(snapshot: Snapshot) -> Iterator[Value]:
    if (probe := snapshot.probe) is not None:
        yield Value("vlmops_probe_passed", float(probe.passed))
        yield Value("vlmops_probe_matched_ratio", probe.matched / probe.asked if probe.asked else 0)
        yield Value("vlmops_probe_seconds", probe.seconds)
        yield Value("vlmops_probe_last_passed_timestamp_seconds", _seconds(probe.last_passed))


def _card(card: Card) -> Iterator[Value]:
    labels = {"gpu": str(card.index), "name": card.name, "uuid": card.uuid}
    told = {
        "memory_used_bytes": card.memory_used_bytes,
        "memory_total_bytes": card.memory_total_bytes,
        "utilization_ratio": card.utilization,
        "temperature_celsius": card.temperature_celsius,
        "power_watts": card.power_watts,
        "power_limit_watts": card.power_limit_watts,
        "ecc_uncorrected_errors": card.ecc_uncorrected,
    }
    for name, value in told.items():
        if value is not None:
            yield Value(f"vlmops_gpu_{name}", value, labels)
    if card.throttled is not None:
        for reason in THROTTLE_REASONS:
            yield Value("vlmops_gpu_throttled", float(reason in card.throttled), {**labels, "reason": reason})
    if card.xids is not None:
        yield Value("vlmops_gpu_xid_errors", sum(card.xids.values()), {**labels, "xid": "all"})
        for xid, count in card.xids.items():
            yield Value("vlmops_gpu_xid_errors", count, {**labels, "xid": str(xid)})
    for owner, count in (card.processes or {}).items():
        yield Value("vlmops_gpu_processes", count, {**labels, "owner": owner})


def _stored(snapshot: Snapshot, limits: Monitoring) -> Iterator[Value]:
    for disk in snapshot.disks:
        yield Value("vlmops_disk_free_bytes", disk.free_bytes, {"disk": disk.name})
        yield Value("vlmops_disk_total_bytes", disk.total_bytes, {"disk": disk.name})
    yield Value("vlmops_disk_wanted_bytes", limits.disk_gib * 2**30)
    if "backup" not in snapshot.unknown:
        yield Value("vlmops_backup_timestamp_seconds", _seconds(snapshot.backup))
    yield Value("vlmops_backup_wanted_seconds", limits.backup_hours * 3600)


def _inputs(snapshot: Snapshot) -> Iterator[Value]:
    for each in snapshot.inputs:
        labels = {"feature": each.feature}
        yield Value("vlmops_input_samples", each.n, labels)
        yield Value("vlmops_input_changed", float(each.changed), labels)
        if each.enough:  # of a few samples they would be noise that looks like news
            yield Value("vlmops_input_psi", each.psi, labels)
            yield Value("vlmops_input_ks", each.ks, labels)
    for name, share in snapshot.rates.items():
        yield Value("vlmops_answer_ratio", share, {"answers": name})


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
