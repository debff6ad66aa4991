"""What is kept: read again as it was, by one writer at a time, whatever lies there."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.errors import DONE
from pipelines.monitoring.conditions import Condition
from pipelines.monitoring.place import Place
from pipelines.monitoring.policy import Asking
from pipelines.monitoring.snapshot import EngineFacts, Snapshot
from pipelines.settings import Settings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ENGINE = EngineFacts(
    started=1, running=0, waiting=0, kv_usage=0, preemptions=0, finished=2, lost=0, latency={0.3: 1, float("inf"): 2}
)


def test_what_was_seen_is_read_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    snapshot = Snapshot(time=NOW, unknown={"front": "gone"}, engine=ENGINE)
    wrong = [Condition("ServiceDown", "critical", "No version serves", "it is down")]
    place.keep(snapshot, wrong, {'a{b="c"}': 1.5})
    assert place.latest() == snapshot
    assert place.standing() == wrong
    assert [row["values"] for row in place.history.since(NOW)] == [{'a{b="c"}': 1.5}]
    asking = Asking(bad=2)
    place.ask(asking)
    assert place.asking() == asking


def test_a_request_is_pending_until_it_was_told_and_the_next_one_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.pending() is None
    first = Asking(asked=NOW, reason="input changed", armed=False)
    place.ask(first)
    assert place.pending() == first
    place.tell(first)
    place.ask(first.model_copy(update={"good": 1}))  # by a monitor that had read it before
    assert place.pending() is None
    second = first.model_copy(update={"asked": NOW.replace(hour=13)})
    place.ask(second)
    assert place.pending() == second


def test_vlmops_status_shows_what_was_seen_last(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == DONE
    assert "seen at" not in capsys.readouterr().out
    place = Place.of(settings)
    place.keep(Snapshot(time=NOW, gpu_state="none"), [Condition("ServiceDown", "critical", "No version", "down")], {})
    assert main(["status"]) == DONE
    shown = capsys.readouterr().out
    assert "seen at 2026-11-24 12:00:00 UTC" in shown
    assert "critical: ServiceDown" in shown


def test_before_the_first_look_nothing_was_seen(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert (place.latest(), place.standing(), place.asking()) == (None, [], Asking())


@pytest.mark.parametrize("content", ["", "{", '{"time": "yesterday"}', "[1]"])
def test_what_another_version_left_counts_for_nothing(tmp_path: Path, content: str) -> None:
    for name in ("latest", "conditions", "asking"):
        (tmp_path / f"{name}.json").write_text(content)
    place = Place(tmp_path)
    assert (place.latest(), place.standing(), place.asking()) == (None, [], Asking())


def test_one_monitor_at_a_time(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.claim() as first, place.claim() as second:
        assert (first, second) == (True, False)
    with place.claim() as again:
        assert again
