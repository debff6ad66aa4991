"""An engine in service that ends is started again; one that keeps ending gives way to what served before."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pipelines.errors import EngineFailed
from pipelines.settings import Settings
from serving import front
from serving.client import served_names
from serving.engine import group
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.promotion.lock import deploy_lock
from serving.promotion.recover import LONGEST_WAIT_SECONDS, Recovery, start_again, trouble, wait_seconds
from serving.served import running
from serving.service import status, stop_service
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry


def _kill(machine: Settings) -> None:
    for leader in running(machine):
        os.killpg(leader, signal.SIGKILL)
        while group(leader):
            time.sleep(0.02)


@pytest.fixture
def recovery(machine: Settings, registry: RecordingRegistry) -> Recovery:
    """Looks after the double."""
    return Recovery(machine, registry, DOUBLE)


def test_an_engine_that_ended_is_started_again(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    assert recovery.look() is None
    Promotion(machine, registry, make(1), DOUBLE).run()
    assert recovery.look() is None
    _kill(machine)
    registry.reachable = False  # to start it again needs nobody's word
    assert recovery.look() == "v1 serves again"
    assert recovery.look() is None
    assert served_names(machine.engine_url) == ("digits", "digits-v1")
    assert not status(machine)["holding"]


def test_an_engine_that_keeps_ending_gives_way(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    for version in (make(1), make(2)):
        Promotion(machine, registry, version, DOUBLE).run()
    for _ in range(2):
        _kill(machine)
        assert recovery.look() == "v2 serves again"
    _kill(machine)
    assert recovery.look() == "v1 serves again: its engine ended 3 times within 10 minutes"
    assert registry.aliases() == {"champion": 1, "previous": 2, "approved": 1}
    assert registry.failed == {"2": "its engine ended 3 times within 10 minutes"}


def test_with_nothing_to_go_back_to_requests_are_refused(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    only = make(1)
    only = only.model_copy(update={"serving": only.serving.model_copy(update={"crashes": 1})})
    Promotion(machine, registry, only, DOUBLE).run()
    _kill(machine)
    with pytest.raises(EngineFailed, match="NOTHING SERVES"):
        recovery.look()
    assert status(machine)["state"] == "down"
    assert recovery.look() is None


def test_what_a_person_stopped_stays_stopped(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    Promotion(machine, registry, make(1), DOUBLE).run()
    stop_service(machine)
    assert (trouble(machine), recovery.look()) == (None, None)
    start_again(machine, DOUBLE)
    assert not status(machine)["holding"]


def test_requests_that_a_killed_promoter_left_waiting_go_on(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    Promotion(machine, registry, make(1), DOUBLE).run()
    before = running(machine)
    front.hold(machine)
    assert recovery.look() == "v1 serves again"
    assert (running(machine), front.holding(machine)) == (before, False)
    assert [t.state for t in DeployLog(machine.serving).read()].count("crashed") == 0


def test_a_promotion_is_left_alone(
    machine: Settings, registry: RecordingRegistry, recovery: Recovery, make: Maker
) -> None:
    Promotion(machine, registry, make(1), DOUBLE).run()
    _kill(machine)
    with deploy_lock(machine):
        assert recovery.look() is None
    assert recovery.look() == "v1 serves again"


def test_each_start_comes_later_than_the_one_before() -> None:
    waits = [wait_seconds(crashes) for crashes in range(1, 20)]
    assert waits[:4] == [0, 1, 2, 4]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_SECONDS


def test_a_lock_that_a_dead_process_left_is_nobody_s(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    machine.serving.mkdir(parents=True)
    Path(machine.serving / "lock").write_text("999999")
    assert Promotion(machine, registry, make(1), DOUBLE).run().version == 1
