"""What a person reads of a snapshot: a line for each source, then what is wrong and where it says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from pipelines.monitoring.conditions import SILENT, Condition
from pipelines.monitoring.snapshot import Snapshot

GIB = 2**30


def table_of(snapshot: Snapshot, conditions: Sequence[Condition]) -> Table:
    """The table; of a look that is long ago it says so: what it shows may be over."""
    title = Text(f"seen at {snapshot.time:%Y-%m-%d %H:%M:%S} UTC", "italic")
    if (age := datetime.now(UTC) - snapshot.time) > SILENT:
        title.append(f", {age / timedelta(hours=1):.1f} h ago: nobody looks; start `vlmops monitor --every 60`", "bold")
    table = Table("what", "seen", box=None, title=title, title_justify="left")
    for name, seen in (*_lines(snapshot), *_wrong(conditions)):
        table.add_row(Text(name), Text(seen))
    return table


def _lines(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    if (now := snapshot.service) is not None:
        serves = "no version" if now.version is None else f"version {now.version}"
        champion = "none" if now.champion is None else f"version {now.champion}"
        yield "service", f"{now.state}, {serves}; champion: {champion}"
    if (engine := snapshot.engine) is not None:
        yield "engine", f"{engine.running:.0f} running, {engine.waiting:.0f} waiting, KV cache {engine.kv_usage:.0%}"
    if snapshot.gpu_state == "none":
        yield "gpu", "no GPU here"
    for card in snapshot.cards:
        memory = "?" if card.memory_used_bytes is None else f"{card.memory_used_bytes / GIB:.1f} GiB"
        told = (_of(card.temperature_celsius, "°C"), _of(card.power_watts, "W"), *(card.throttled or ()))
        yield f"gpu {card.index}", ", ".join((card.name, memory, *told))
    if (probe := snapshot.probe) is not None:
        yield "probe", f"{probe.matched} of {probe.asked} golden answers at {probe.time:%H:%M} UTC"
    for disk in snapshot.disks:
        yield f"disk {disk.name}", f"{disk.free_bytes / GIB:.1f} GiB free"
    for source, why in snapshot.unknown.items():
        yield source, f"unknown: {why}"


def _wrong(conditions: Sequence[Condition]) -> Iterator[tuple[str, str]]:
    if not conditions:
        yield "alerts", "none"
    for each in conditions:
        yield f"{each.severity}: {each.name}", f"{each.summary}: {each.detail} ({each.runbook})"


def _of(value: float | None, unit: str) -> str:
    return f"? {unit}" if value is None else f"{value:.0f} {unit}"
