"""Twenty promotions and rollbacks under traffic that never pauses: nothing is lost, no answer is of a wrong model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from pipelines.settings import Settings
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic

TIMES = 20


def test_twenty_promotions_and_rollbacks(
    machine: Settings, registry: RecordingRegistry, make: Maker, start_front: Callable[[float], None]
) -> None:
    start_front(20)
    card = replace(make, device="cuda", serving=make.serving.model_copy(update={"watch_seconds": 0.1}))
    first, second, third = (card(number, seconds=0.05) for number in (1, 2, 3))
    third = third.model_copy(update={"serving": third.serving.model_copy(update={"strategy": "restart"})})
    Promotion(machine, registry, first, DOUBLE).run()
    strategies, quiet = [], []
    with Traffic(machine, "digits", rate=15) as traffic:
        for target in ((second, first, third, first) * TIMES)[:TIMES]:
            strategies.append(Promotion(machine, registry, target, DOUBLE).run().strategy)
            quiet.append((time.monotonic(), time.monotonic() + 0.3, f"answer of v{target.version}"))
            time.sleep(0.3)
    assert strategies == ["reload", "reload", "restart", "restart"] * (TIMES // 4)
    assert set(traffic.outcomes) == {f"answer of v{number}" for number in (1, 2, 3)}
    for began, ended, answer in quiet:
        assert {got for sent, came, got in traffic.answered if began <= sent and came <= ended} <= {answer}
    holds = [t.hold_seconds for t in DeployLog(machine.serving).read() if t.state == "serving"][1:]
    assert len(holds) == TIMES
    assert 0 < statistics.median(holds) <= max(holds) < 10
    assert traffic.longest_seconds < max(holds) + 5
