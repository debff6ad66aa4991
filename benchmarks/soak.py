"""The embedded stack under load for an hour, with a promotion every few minutes: what is lost, and what grows.

usage: python -m benchmarks.soak HOME [--minutes 60] [--every 5] [--share 0.8]

HOME is where `vlmops demo` or `vlmops run` left a registered version (`.vlmops/demo`, say); nothing may run there. The
whole stack is started: Airflow, MLflow, Caddy, the engine. Promotions go the way that they always go: the alias
`approved` moves in MLflow, Airflow sees it and starts the Dag redeploy. Where there is one version, the same export is
registered again, so that there are two to go back and forth between.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from scipy.stats import theilslopes

from pipelines import tracking
from pipelines.config_file import load_config
from pipelines.embedded.stack import Stack, serve_again
from pipelines.errors import BadInput
from pipelines.registry import Registry
from pipelines.settings import Settings
from pipelines.system.processes import wait_until
from serving import front
from serving.client import healthy
from serving.promotion.deploy_log import DeployLog, Transition
from tests.serving.traffic import Traffic

WARM_SHARE = 0.2
"""Of the time, before memory is looked at: caches fill."""

SAMPLE_SECONDS = 5.0
PROMOTION_SECONDS = 300.0
CAPACITY_SECONDS = 30.0
AT_ONCE = 16
PATIENCE = 5
"""How often a client asks again that is told to, as clients of OpenAI's kind do."""

ANSWER_TOKENS = 16


@dataclass
class Memory:
    """Resident MiB of each part of the stack, over time."""

    began: float = field(default_factory=time.monotonic)
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def look(self, engine_port: int) -> None:
        """Take one sample of every part."""
        now = (time.monotonic() - self.began) / 3600
        sums: dict[str, float] = defaultdict(float)
        for part, process in _parts(engine_port):
            try:
                sums[part] += process.memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                continue
        for part, mib in sums.items():
            self.samples[part].append((now, mib))

    def growth(self, part: str) -> tuple[float, float, float, float]:
        """Median MiB after the warm-up, and MiB an hour by Theil and Sen's slope with its 95 % interval."""
        times, sizes = zip(*self.samples[part], strict=True)
        first = next(i for i, hours in enumerate(times) if hours >= times[-1] * WARM_SHARE)
        slope = theilslopes(sizes[first:], times[first:], 0.95)
        return statistics.median(sizes[first:]), slope.slope, slope.low_slope, slope.high_slope


def soak(settings: Settings, minutes: float, every: float, share: float) -> Table:
    """Run, and tell what was seen."""
    config = load_config(settings.config)
    with Stack(settings) as stack:
        registry = Registry(stack.settings, config.registry.model)
        first, second = _two_versions(stack.settings, registry)
        serve_again(stack)
        _wait_in_service(stack, registry, first, Memory())
        clients = partial(Traffic, stack.settings, config.serving.name, patience=PATIENCE, max_tokens=ANSWER_TOKENS)
        capacity = asyncio.run(_capacity(clients()))
        Console().print(f"capacity: {capacity:.1f} questions a second; {share:.0%} of it for {minutes:.0f} minutes")
        memory, before = Memory(), len(_log(settings))
        with clients(rate=share * capacity) as traffic, _progress() as progress:
            shown = progress.add_task("soaking", total=minutes * 60)
            turn, next_promotion = 0, time.monotonic() + every * 60
            while (elapsed := time.monotonic() - memory.began) < minutes * 60:
                stack.check()
                memory.look(settings.engine_port)
                progress.update(shown, completed=elapsed)
                if time.monotonic() >= next_promotion:
                    turn, next_promotion = turn + 1, next_promotion + every * 60
                    _promote(stack, registry, (first, second)[turn % 2], memory)
                time.sleep(SAMPLE_SECONDS)
        return _table(traffic, memory, _log(settings)[before:])


def _two_versions(settings: Settings, registry: Registry) -> tuple[int, int]:
    approved = registry.aliases().get("approved")
    if approved is None:
        raise BadInput(f"{registry.model} has no approved version; run `vlmops demo` into this home first")
    others = [number for alias, number in registry.aliases().items() if number != approved]
    if others:
        return approved, others[0]
    client = tracking.client(settings)
    run = client.get_run(registry.version(approved).tracking_run)
    again = client.create_run(run.info.experiment_id, run_name="soak")
    return approved, registry.add(registry.tags(approved), again.info.run_id).version


def _promote(stack: Stack, registry: Registry, version: int, memory: Memory) -> None:
    """Approve a version, and wait until it is champion and serves."""
    registry.approve(version, reviewer="soak", reason="benchmarks/soak.py")
    _wait_in_service(stack, registry, version, memory)


def _wait_in_service(stack: Stack, registry: Registry, version: int, memory: Memory) -> None:
    def in_service() -> bool:
        stack.check()
        memory.look(stack.settings.engine_port)
        serves = healthy(stack.settings.engine_url) and not front.holding(stack.settings)
        return serves and registry.aliases().get("champion") == version

    wait_until(in_service, PROMOTION_SECONDS, lambda: BadInput(f"v{version} was not promoted; see the Dag redeploy"), 2)


async def _capacity(traffic: Traffic) -> float:
    """Answers a second with AT_ONCE questions always under way."""
    end = time.monotonic() + CAPACITY_SECONDS

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() < end:
            await traffic.ask(http, number)
            number += AT_ONCE

    async with traffic.client() as http:
        await asyncio.gather(*(ask(http, number) for number in range(AT_ONCE)))
    return traffic.outcomes.total() / CAPACITY_SECONDS


def _parts(engine_port: int) -> list[tuple[str, psutil.Process]]:
    """The processes of the stack; an engine in service is nobody's child, and leads the group that has its port."""
    me = psutil.Process()
    found = [(_part(process), process) for process in me.children(recursive=True)]
    holders = {one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == engine_port}
    groups = {os.getpgid(pid) for pid in holders if pid and psutil.pid_exists(pid)} - {os.getpgid(0)}
    ours = {process.pid for _, process in found}
    for process in psutil.process_iter():
        if process.pid not in ours and psutil.pid_exists(process.pid) and os.getpgid(process.pid) in groups:
            found.append(("engine", process))
    return found


def _part(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return "Airflow"
    for word, part in (("caddy", "Caddy"), ("keys_service", "keys service"), ("mlflow", "MLflow"), ("vllm", "engine")):
        if word in command:
            return part
    return "Airflow"


def _log(settings: Settings) -> list[Transition]:
    return DeployLog(settings.serving).read()


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), TimeElapsedColumn())


def _table(traffic: Traffic, memory: Memory, log: list[Transition]) -> Table:
    seconds = sorted(end - began for began, end, _ in traffic.answered)
    lost = traffic.lost
    holds = [one.hold_seconds for one in log if one.state == "serving"]
    table = Table("what", "seen", title="soak of the embedded stack")
    table.add_row("questions", str(traffic.outcomes.total()))
    table.add_row("lost", "\n".join((str(sum(lost.values())), *(f"{n} x {how}" for how, n in lost.items()))))
    table.add_row("told to ask again after a while (503), and did", str(traffic.told_to_wait))
    table.add_row("promotions", str(len(holds)))
    table.add_row("undone or down", str(sum(one.state in {"undo", "down", "crashed"} for one in log)))
    if holds:
        table.add_row("hold p50 / longest", f"{statistics.median(holds):.1f} / {max(holds):.1f} s")
    p50, p99 = (seconds[round(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    table.add_row("answer p50 / p99 / longest", f"{p50:.2f} / {p99:.1f} / {seconds[-1]:.1f} s")
    for part in sorted(memory.samples):
        median, slope, low, high = memory.growth(part)
        table.add_row(f"memory of {part}", f"{median:.0f} MiB, {slope:+.1f} MiB an hour ({low:+.1f} to {high:+.1f})")
    return table


def main() -> None:
    """Soak and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="minutes between promotions")
    parser.add_argument("--share", type=float, default=0.8, help="of what the engine can answer")
    options = parser.parse_args()
    os.environ["VLMOPS_HOME"] = str(options.home.resolve())
    Console(width=130).print(soak(Settings(), options.minutes, options.every, options.share))


if __name__ == "__main__":
    main()
