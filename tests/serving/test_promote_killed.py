"""Whoever dies in the middle of a promotion: an engine serves in the end, proven, and `champion` names it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from pipelines.errors import PromotionFailed
from pipelines.settings import Settings
from pipelines.system.processes import running as started
from pipelines.system.processes import wait_until
from serving import front
from serving.engine import group
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, running
from serving.service import status
from tests.serving.conftest import DOUBLE, Maker, wait_for_caddy
from tests.serving.registry_double import RecordingRegistry

RESTART = ("verify", "choose", "hold", "drain", "stop", "start", "probe", "release", "watch")
RELOAD = ("verify", "choose", "hold", "drain", "reload", "probe", "release", "watch", "serving")
ADAPTER = ("adapter", "probe", "release")
"""Where it differs from a reload."""


def _kill_engines(machine: Settings) -> None:
    for leader in running(machine):
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
        wait_until(lambda leader=leader: not group(leader), 10, lambda: AssertionError("not dead"), 0.02)


def _at(state: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, as a step of the promotion of v2 begins."""
    write, done = DeployLog.write, []

    def write_and_act(log: DeployLog, version: int | None, now: str, *rest: object) -> None:
        write(log, version, now, *rest)
        if now == state and version == 2 and not done:
            done.append(state)
            act()

    monkeypatch.setattr(DeployLog, "write", write_and_act)


def _truth(machine: Settings, registry: RecordingRegistry, versions: tuple[Served, Served]) -> None:
    """One engine runs, requests pass, and the alias names it."""
    [log] = running(machine).values()
    [serves] = [version for version in versions if version.log(machine) == log]
    assert registry.serving == registry.champion == serves.version == status(machine)["version"]
    assert not status(machine)["holding"]


@pytest.mark.parametrize(
    ("device", "adapters", "state"),
    [
        *(("cpu", False, state) for state in RESTART),
        *(("cuda", False, state) for state in RELOAD[:-1]),
        *(("cpu", True, state) for state in ADAPTER),
    ],
)
def test_the_engine_is_killed(
    device: str,
    adapters: bool,
    state: str,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = replace(make, device=device, adapters=adapters)
    first, second = make(1), make(2)
    Promotion(machine, registry, first, DOUBLE).run()
    _at(state, lambda: _kill_engines(machine), monkeypatch)
    with suppress(PromotionFailed):
        Promotion(machine, registry, second, DOUBLE).run()
    _truth(machine, registry, (first, second))


@pytest.mark.parametrize("wanted", [1, 2])
@pytest.mark.parametrize(
    ("adapters", "state"), [*((False, state) for state in RELOAD), *((True, state) for state in ADAPTER)]
)
def test_the_promoter_is_killed_while_the_engine_stays(
    adapters: bool,
    state: str,
    wanted: int,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = replace(make, device="cuda", adapters=adapters)
    versions = make(1), make(2)
    Promotion(machine, registry, versions[0], DOUBLE).run()
    _at(state, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
    killed = multiprocessing.get_context("fork").Process(target=Promotion(machine, registry, versions[1], DOUBLE).run)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    monkeypatch.setenv("VLMOPS_HOME", str(machine.home))
    Promotion(machine, registry, versions[wanted - 1], DOUBLE).run()
    assert registry.champion == wanted
    _truth(machine, registry, versions)


def test_caddy_is_killed(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    start_front: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    start_front(20)
    first, second = make(1), make(2)
    Promotion(machine, registry, first, DOUBLE).run()
    _at("hold", lambda: _kill_caddy(machine), monkeypatch)
    Promotion(machine, registry, second, DOUBLE).run()
    _truth(machine, registry, (first, second))
    caddy = front.wards(machine)[-1]
    with started(caddy.command, tmp_path_factory.mktemp("again") / "caddy.log", caddy.environment, caddy.folder):
        wait_for_caddy(machine)
        assert not front.holding(machine)


def _kill_caddy(machine: Settings) -> None:
    import psutil

    program = front.wards(machine)[-1].command
    [caddy] = [process for process in psutil.Process().children(recursive=True) if process.cmdline() == program]
    caddy.kill()
    caddy.wait()
