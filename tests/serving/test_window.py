"""The watch window: a version that breaks under traffic gives way before `champion` has named it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import EngineBusy, EngineFailed, PromotionFailed
from pipelines.settings import Settings
from serving import front
from serving.probe import ProbeResult
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, running
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic


def _watched(version: Served, seconds: float) -> Served:
    return version.model_copy(update={"serving": version.serving.model_copy(update={"watch_seconds": seconds})})


def test_lost_requests_bring_the_old_version_back(
    machine: Settings, registry: RecordingRegistry, make: Maker, start_front: Callable[[float], None]
) -> None:
    start_front(20)
    first = make(1)
    Promotion(machine, registry, first, DOUBLE).run()
    with (
        Traffic(machine, "digits") as traffic,
        pytest.raises(PromotionFailed, match=r"v2 does not serve: it lost 1 requests(.|\n)*v1 serves again"),
    ):
        Promotion(machine, registry, _watched(make(2, "counted", at=40), 5), DOUBLE).run()
    assert set(traffic.outcomes) == {"answer of v1", "answer of v2"}
    assert list(running(machine).values()) == [first.log(machine)]
    assert (registry.champion, list(registry.failed), registry.facts(2)["deploy_state"]) == (1, ["2"], "failed")
    assert registry.served == [1, 2, 1]
    assert [t.state for t in DeployLog(machine.serving).read()][-9:] == [
        "watch", "hold", "drain", "undo", "stop", "start", "probe", "release", "restored",
    ]  # fmt: skip


def test_the_probe_at_its_end_brings_the_old_version_back(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    first = make(1)
    Promotion(machine, registry, first, DOUBLE).run()
    with pytest.raises(PromotionFailed, match="1 of 6 golden answers came again, 50% must"):
        Promotion(machine, registry, _watched(make(2, "exits", at=8), 0), DOUBLE).run()
    assert list(running(machine).values()) == [first.log(machine)]
    assert registry.champion == 1


def test_clients_that_fill_the_queue_are_no_fault_of_a_version(
    machine: Settings, registry: RecordingRegistry, make: Maker, start_front: Callable[[float], None]
) -> None:
    """Whoever waited during the hold comes at once when it ends; the probe finds its place among them."""
    start_front(20)
    settled = {"max_num_seqs": 1, "max_waiting": 0, "watch_seconds": 0.0, "watch_match": 1.0}

    def narrow(version: Served) -> Served:
        return version.model_copy(update={"serving": version.serving.model_copy(update=settled)})

    Promotion(machine, registry, narrow(make(1)), DOUBLE).run()
    with Traffic(machine, "digits", rate=60) as traffic:
        Promotion(machine, registry, narrow(make(2, seconds=0.1)), DOUBLE).run()
    assert registry.champion == 2
    assert traffic.outcomes["status 503"] > 0


def test_a_queue_that_stays_full_is_not_held_against_a_version(
    machine: Settings, registry: RecordingRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> ProbeResult:
        raise EngineBusy("its queue is full")

    monkeypatch.setattr("serving.promotion.window.probe", full)
    Promotion(machine, registry, make(1), DOUBLE).run()
    assert registry.champion == 1


def test_what_serves_is_named_while_nobody_is_answered(machine: Settings, make: Maker, tmp_path: Path) -> None:
    held: list[bool] = []

    class Registry(RecordingRegistry):
        def serves(self, version: int | None) -> None:
            held.append(front.holding(machine))
            super().serves(version)

    registry = Registry(tmp_path / "registry.json")
    for version in (make(1), make(2)):
        Promotion(machine, registry, version, DOUBLE).run()
    assert (held, registry.served, registry.serving) == ([True, True], [1, 2], 2)


def _probed(failures: int, ruined: int = 0) -> ProbeResult:
    items = tuple("abcdefgh")
    return ProbeResult(items, dict.fromkeys(items[:failures], "other"), frozenset(items[:ruined]))


def test_a_tolerance_is_for_other_answers_not_for_ruined_ones() -> None:
    _probed(4).require(0.5)
    with pytest.raises(EngineFailed, match="3 of 8 golden answers"):
        _probed(5).require(0.5)
    with pytest.raises(EngineFailed, match="7 of 8"):
        _probed(1, ruined=1).require(0.5)
    with pytest.raises(EngineFailed, match="0 of 1 golden answers that tell it"):
        _probed(1).require(0.5, among={"a"})
    _probed(1).require(0.5, among={"h"})
