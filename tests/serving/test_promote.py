"""Promotion: nothing is lost, nothing lies, and whatever breaks ends with the old version serving."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pipelines.errors import PromotionFailed, Unreachable
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from serving.caddyfile import RETRY_SECONDS
from serving.client import served_names
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, read_served, running
from serving.service import status, stop_service
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic

StartFront = Callable[[float], None]


@pytest.fixture
def promote(machine: Settings, registry: RecordingRegistry) -> Callable[[Served], object]:
    """Promotes in this process."""
    return lambda target: Promotion(machine, registry, target, DOUBLE).run()


def _states(machine: Settings) -> list[str]:
    return [transition.state for transition in DeployLog(machine.serving).read()]


def _ask(machine: Settings) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential(machine.state, 'front_key')}"}
    body = {"model": "digits", "messages": [{"role": "user", "content": [{"type": "text", "text": "question 1"}]}]}
    return httpx.post(f"{machine.front_url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def _answers_as(machine: Settings, version: int) -> bool:
    answer = _ask(machine).json()["choices"][0]["message"]["content"]
    return bool(answer == f"answer of v{version}")


def test_promotions_under_traffic_lose_nothing(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    start_front: StartFront,
) -> None:
    start_front(20)
    versions = [make(number, seconds=0.1) for number in (1, 2, 3)]
    promote(versions[0])
    with Traffic(machine, "digits") as traffic:
        for version in (versions[1], versions[2], versions[1]):
            promote(version)
            time.sleep(0.5)
    assert set(traffic.outcomes) == {"answer of v1", "answer of v2", "answer of v3"}
    assert traffic.outcomes.total() > 60
    assert traffic.longest_seconds < 8
    assert registry.aliases() == {"champion": 2, "previous": 3}
    assert len(running(machine)) == 1


def test_first_promotion(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    deployment = Promotion(machine, registry, make(1), DOUBLE).run()
    assert (deployment.version, deployment.previous, deployment.probe_matched) == (1, None, 6)
    assert _states(machine) == [
        "verify", "choose", "hold", "drain", "start", "probe", "release", "watch", "serving",
    ]  # fmt: skip
    assert not status(machine)["holding"]
    assert set(served_names(machine.engine_url)) == {"digits", "digits-v1"}


def test_a_second_call_changes_nothing(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    version = make(1)
    promote(version)
    before = running(machine)
    deployment = Promotion(machine, registry, version, DOUBLE).run()
    assert running(machine) == before
    assert deployment.hold_seconds == 0
    assert "hold" not in _states(machine)[9:]


@pytest.mark.parametrize("fault", ["dies", "oom", "never", "garbage", "empty", "abort"])
def test_a_version_that_cannot_serve_is_undone(
    fault: str, machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    bad = make(2, fault)
    if fault == "never":
        bad = bad.model_copy(update={"serving": bad.serving.model_copy(update={"start_seconds": 1.0})})
    with pytest.raises(PromotionFailed, match=r"v2 does not serve(.|\n)*v1 serves again"):
        promote(bad)
    assert served_names(machine.engine_url) == ("digits", "digits-v1")
    assert registry.champion == 1
    assert list(registry.failed) == ["2"]
    assert status(machine) | {"pid": 0} == {
        "state": "unreachable", "version": 1, "pid": 0, "endpoint": machine.front_url, "holding": False,
    }  # fmt: skip


def test_the_engine_log_is_in_the_error(make: Maker, promote: Callable[[Served], object]) -> None:
    promote(make(1))
    with pytest.raises(PromotionFailed, match="Engine core initialization failed"):
        promote(make(2, "dies"))


def test_a_card_that_is_full_is_named(make: Maker, promote: Callable[[Served], object]) -> None:
    promote(make(1))
    with pytest.raises(PromotionFailed, match=r"too little memory free(.|\n)*CUDA out of memory"):
        promote(make(2, "oom"))


def test_an_old_model_under_a_new_name_is_noticed(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    with pytest.raises(PromotionFailed, match="0 of 6 golden answers"):
        promote(make(2, golden_fault=True))
    assert registry.champion == 1


def test_a_tampered_version_is_refused_before_anything_moves(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    before = running(machine)
    version = make(2)
    (version.model / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(PromotionFailed, match="nothing was touched"):
        promote(version)
    assert running(machine) == before
    assert "hold" not in _states(machine)[9:]
    assert (registry.champion, list(registry.failed)) == (1, ["2"])


def test_nothing_moves_without_a_registry(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    before = running(machine)
    registry.reachable = False
    with pytest.raises(Unreachable):
        promote(make(2))
    assert running(machine) == before


def test_down_when_the_old_version_does_not_come_back(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    start_front: StartFront,
) -> None:
    start_front(20)
    first = make(1)
    promote(first)
    (first.model / "double.json").write_text(json.dumps({"answers": {}, "fault": "dies"}))
    with pytest.raises(PromotionFailed, match="NOTHING SERVES"):
        promote(make(2, "dies"))
    answer = _ask(machine)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(RETRY_SECONDS))
    assert answer.elapsed.total_seconds() < 2
    assert _states(machine)[-1] == "down"
    assert status(machine)["state"] == "down"
    promote(make(3))
    assert _answers_as(machine, 3)


def test_requests_that_do_not_end_stop_the_deploy_not_the_service(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    start_front: StartFront,
) -> None:
    start_front(20)
    promote(make(1, seconds=1))
    late = make(2)
    late = late.model_copy(update={"serving": late.serving.model_copy(update={"drain_seconds": 0.2})})
    with Traffic(machine, "digits", rate=4) as traffic, pytest.raises(PromotionFailed, match="still running"):
        promote(late)
    assert set(traffic.outcomes) == {"answer of v1"}
    assert registry.failed == {}
    assert _states(machine)[-1] == "abort"


STATES = ("verify", "choose", "hold", "drain", "stop", "start", "probe", "release", "watch", "serving")


def _promote_and_die(machine: Settings, registry: RecordingRegistry, target: Served, state: str) -> None:
    write = DeployLog.write

    def write_and_die(log: DeployLog, version: int | None, now: str, *rest: object) -> None:
        write(log, version, now, *rest)
        if now == state:
            os.kill(os.getpid(), signal.SIGKILL)

    DeployLog.write = write_and_die
    Promotion(machine, registry, target, DOUBLE).run()


@pytest.mark.parametrize("state", STATES)
def test_a_killed_promotion_is_finished_by_the_next_call(
    state: str,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    start_front: StartFront,
) -> None:
    start_front(20)
    first, second = make(1), make(2)
    promote(first)
    with Traffic(machine, "digits", rate=10) as traffic:
        killed = multiprocessing.get_context("fork").Process(
            target=_promote_and_die, args=(machine, registry, second, state)
        )
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        if registry.champion == 2:
            assert read_served(machine) == second
        promote(second)
    assert set(traffic.outcomes) <= {"answer of v1", "answer of v2"}
    assert _answers_as(machine, 2)
    assert registry.aliases() == {"champion": 2, "previous": 1}
    assert len(running(machine)) == 1


@pytest.mark.parametrize("state", ["stop", "probe"])
def test_after_a_killed_promotion_the_old_version_can_be_asked_for(
    state: str, machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    first = make(1)
    promote(first)
    killed = multiprocessing.get_context("fork").Process(
        target=_promote_and_die, args=(machine, registry, make(2), state)
    )
    killed.start()
    killed.join()
    promote(first)
    assert served_names(machine.engine_url) == ("digits", "digits-v1")
    assert registry.champion == 1


def test_two_promoters(machine: Settings, registry: RecordingRegistry, make: Maker) -> None:
    first, second = make(1, start=1.5), make(2)
    busy = multiprocessing.get_context("fork").Process(target=Promotion(machine, registry, first, DOUBLE).run)
    busy.start()
    while "start" not in _states(machine):
        time.sleep(0.05)
    with pytest.raises(PromotionFailed, match=f"process {busy.pid} "):
        Promotion(machine, registry, second, DOUBLE).run()
    busy.join()
    assert registry.champion == 1


def test_an_orphaned_engine_core_is_found_and_stopped(
    machine: Settings, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    [leader] = running(machine)
    os.kill(leader, signal.SIGKILL)
    assert list(running(machine)) == [leader]
    promote(make(2))
    assert served_names(machine.engine_url) == ("digits", "digits-v2")
    assert len(running(machine)) == 1


def test_stop_ends_every_process(machine: Settings, make: Maker, promote: Callable[[Served], object]) -> None:
    version = make(1)
    promote(version)
    stop_service(machine)
    assert running(machine) == {}
    assert status(machine) == {
        "state": "stopped", "version": None, "pid": None, "endpoint": machine.front_url, "holding": True,
    }  # fmt: skip
    promote(version)
    assert not status(machine)["holding"]


def test_a_half_written_line_of_the_deploy_log_is_left_out_and_takes_no_other_with_it(tmp_path: Path) -> None:
    log = DeployLog(tmp_path)
    log.write(1, "hold")
    with log.path.open("a") as file:
        file.write('{"time": "2026')
    log.write(1, "drain")
    log.write(1, "start")
    assert [transition.state for transition in log.read()] == ["hold", "drain", "start"]
