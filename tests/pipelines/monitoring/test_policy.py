"""When a retrain is asked for: not at the first sign, not twice for one reason, not by what is unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.config_monitoring import RetrainPolicy
from pipelines.monitoring.drift import Comparison
from pipelines.monitoring.policy import Asking, consider
from pipelines.monitoring.snapshot import Snapshot

BEGIN = datetime(2026, 11, 24, tzinfo=UTC)
POLICY = RetrainPolicy(on="input_changed", checks=3, pause_hours=1)


def seen(minute: int, changed: bool | None) -> Snapshot:
    """None: too few samples."""
    comparison = Comparison(
        feature="aspect", n=300, n_reference=2000, psi=0.4, psi_by_chance=0.1, ks=0.3, enough=changed is not None,
        changed=bool(changed),
    )  # fmt: skip
    moment = BEGIN + timedelta(minutes=minute)
    return Snapshot(time=moment, inputs=(comparison,), compared=moment)


def follow(checks: list[bool | None], policy: RetrainPolicy = POLICY, minutes: int = 5) -> list[int]:
    """The checks at which it asked."""
    asking, asked = Asking(), []
    for number, changed in enumerate(checks):
        before, asking = asking.asked, consider(asking, seen(number * minutes, changed), policy)
        if asking.asked != before:
            asked.append(number)
    return asked


def test_it_asks_after_checks_that_agree_and_says_why() -> None:
    asking = Asking()
    for minute in range(3):
        asking = consider(asking, seen(minute, True), POLICY)
    assert asking.reason == "input changed: aspect (PSI 0.40, n 300)"
    assert consider(asking, seen(9, True), POLICY).asked == asking.asked


def test_it_does_not_ask_again_while_the_same_stands() -> None:
    assert follow([True] * 500) == [2]


def test_it_asks_again_once_it_was_quiet_and_the_pause_is_over() -> None:
    assert follow([True] * 3 + [False] * 3 + [True] * 20) == [2, 14]  # 60 minutes after the first
    assert follow([True] * 3 + [False] * 2 + [True] * 50) == [2]


def test_what_is_unknown_changes_nothing() -> None:
    assert follow([True, None, True, None, None, True]) == [5]


def test_looks_that_show_the_same_comparison_again_count_once() -> None:
    asking = Asking()
    for minute in range(50):
        asking = consider(asking, seen(0, True).model_copy(update={"time": BEGIN + timedelta(minutes=minute)}), POLICY)
    assert (asking.bad, asking.asked) == (1, None)


def test_never_is_never() -> None:
    assert follow([True] * 50, RetrainPolicy()) == []
    assert RetrainPolicy().on == "never"


@given(st.lists(st.sampled_from([True, False, None]), max_size=200))
def test_requests_have_reasons_and_pauses(checks: list[bool | None]) -> None:
    asked = follow(checks)
    for number in asked:
        known = [check for check in checks[: number + 1] if check is not None]
        assert known[-3:] == [True, True, True]
    for earlier, later in pairwise(asked):
        assert (later - earlier) * 5 >= 60
        quiet = "".join("f" if check is False else "t" for check in checks[earlier:later] if check is not None)
        assert "fff" in quiet


@given(st.lists(st.booleans(), max_size=100))
def test_what_flaps_faster_than_the_checks_never_asks(checks: list[bool]) -> None:
    flapping = [check for pair in ((True, check, False) for check in checks) for check in pair]
    assert follow(flapping, RetrainPolicy(on="input_changed", checks=3)) == []
