"""What is told, when, and to whom: once when it begins, once when it is over, and nothing is lost on the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import cli
from pipelines.alerts import notify as notify_module
from pipelines.alerts.alert import Alert
from pipelines.alerts.commands import send_test
from pipelines.alerts.hysteresis import follow
from pipelines.alerts.notify import Memory, Report, notify, read_alerts
from pipelines.config_alerts import Alerts
from pipelines.errors import BadInput
from pipelines.settings import ROOT
from tests.pipelines.alerts.receivers import Receiver, receiver

DOWN = Alert("EngineDown", "critical", "no answer for 30 s", {"model": "digits"})
HOT = Alert("Hot", "warning", "87 C", {"gpu": "0"})
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def config(**fields: object) -> Alerts:
    base = {"fire_after": 2, "resolve_after": 2, "sinks": [{"kind": "webhook", "name": "w", "url_from": "A_WEBHOOK"}]}
    return Alerts.model_validate({**base, **fields})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiver(lambda _: (200, b"")) as server:
        monkeypatch.setenv("A_WEBHOOK", server.url)
        yield server


def told(server: Receiver) -> list[list[tuple[str, str]]]:
    """Kind and name of each notice, by message."""
    bodies = [json.loads(request.body) for request in server.received]
    return [[(notice["kind"], notice["alert"]["name"]) for notice in body["notices"]] for body in bodies]


def checks(config: Alerts, folder: Path, *found: Sequence[Alert], minutes: float = 1) -> list[Report]:
    """One check after another."""
    return [
        notify(config, folder, alerts, now=START + timedelta(minutes=at * minutes)) for at, alerts in enumerate(found)
    ]


def test_both_edges_are_told_once_after_enough_checks(there: Receiver, tmp_path: Path) -> None:
    checks(config(), tmp_path, [DOWN], [DOWN], [DOWN], [DOWN], [], [], [], [])
    assert told(there) == [[("firing", "EngineDown")], [("resolved", "EngineDown")]]


def test_flapping_is_not_told(there: Receiver, tmp_path: Path) -> None:
    checks(config(), tmp_path, [DOWN], [], [DOWN], [], [DOWN], [])
    assert told(there) == []
    checks(config(), tmp_path, [DOWN], [DOWN], [], [DOWN], [], [DOWN])
    assert told(there) == [[("firing", "EngineDown")]]


def test_other_figures_are_the_same_alert_and_other_labels_another(there: Receiver, tmp_path: Path) -> None:
    later = Alert(DOWN.name, "critical", "no answer for 90 s", DOWN.labels)
    other = Alert(DOWN.name, "critical", DOWN.summary, {"model": "labels"})
    checks(config(), tmp_path, [DOWN, DOWN], [later], [later, other], [later, other])
    assert told(there) == [[("firing", "EngineDown")], [("firing", "EngineDown")]]


def test_what_begins_together_is_told_together(there: Receiver, tmp_path: Path) -> None:
    checks(config(fire_after=1), tmp_path, [DOWN, HOT])
    assert told(there) == [[("firing", "EngineDown"), ("firing", "Hot")]]


def test_what_goes_on_is_told_again_after_a_day(there: Receiver, tmp_path: Path) -> None:
    checks(config(fire_after=1, repeat_hours=24), tmp_path, *[[DOWN]] * 50, minutes=60)
    assert [kind for [(kind, _)] in told(there)] == ["firing", "still firing", "still firing"]


def test_what_gets_worse_is_told_again_and_its_end_to_whoever_heard_of_it(there: Receiver, tmp_path: Path) -> None:
    sinks = [{"kind": "webhook", "name": "w", "url_from": "A_WEBHOOK", "least": "critical"}]
    worse = Alert(HOT.name, "critical", "97 C", HOT.labels)
    checks(config(fire_after=1, sinks=sinks), tmp_path, [HOT], [worse], [HOT], [], [])
    assert told(there) == [[("firing", "Hot")], [("resolved", "Hot")]]


def test_a_restart_neither_repeats_nor_forgets(there: Receiver, tmp_path: Path) -> None:
    checks(config(), tmp_path, [DOWN])
    assert [tracked.bad for tracked in read_alerts(tmp_path).alerts.values()] == [1]
    for _ in range(3):  # nothing is kept in memory: every call is a new process's first
        checks(config(), tmp_path, [DOWN])
    assert told(there) == [[("firing", "EngineDown")]]


def test_what_a_dead_sink_was_not_told_it_is_told_later(
    there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = there.url
    monkeypatch.setenv("A_WEBHOOK", "http://127.0.0.1:9/")
    reports = checks(config(), tmp_path, [DOWN], [DOWN], [], [])
    assert reports[-1].waiting == {"w": 2}
    last = read_alerts(tmp_path).outboxes["w"].last
    assert last is not None
    assert last.error is not None
    monkeypatch.setenv("A_WEBHOOK", alive)
    [report] = checks(config(), tmp_path, [])
    assert told(there) == [[("firing", "EngineDown"), ("resolved", "EngineDown")]]
    assert report.waiting == {"w": 0}


def test_a_sink_that_is_not_set_up_keeps_nothing_from_the_others(there: Receiver, tmp_path: Path) -> None:
    sinks = [
        {"kind": "slack", "name": "chat", "url_from": "NOT_SET_WEBHOOK"},
        {"kind": "webhook", "name": "w", "url_from": "A_WEBHOOK"},
    ]
    [report] = checks(config(fire_after=1, sinks=sinks), tmp_path, [DOWN])
    assert told(there) == [[("firing", "EngineDown")]]
    assert {d.sink: d.error is None for d in report.deliveries} == {"chat": False, "w": True}
    assert report.waiting == {"chat": 1, "w": 0}


def test_beyond_the_hours_messages_notices_wait_and_go_out_together(there: Receiver, tmp_path: Path) -> None:
    sinks = [{"kind": "webhook", "name": "w", "url_from": "A_WEBHOOK", "per_hour": 2}]
    many = [Alert("Many", "info", "x", {"n": str(at)}) for at in range(70)]
    checks(config(fire_after=1, resolve_after=100, sinks=sinks), tmp_path, *[[alert] for alert in many])
    assert [len(message) for message in told(there)] == [1, 1, 59, 1]  # at minutes 0, 1, then 60 and 61


def test_a_flood_is_bounded_and_counted(there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = there.url
    monkeypatch.setenv("A_WEBHOOK", "http://127.0.0.1:9/")
    flood = [Alert("Many", "info", "x", {"n": str(at)}) for at in range(300)]
    checks(config(fire_after=1), tmp_path, flood)
    assert len(read_alerts(tmp_path).outboxes["w"].waiting) == 200
    monkeypatch.setenv("A_WEBHOOK", alive)
    notify(config(fire_after=1), tmp_path, flood, now=START + timedelta(minutes=3))
    [request] = there.received
    assert "and 280 more" in json.loads(request.body)["text"]


def _notify_slowly(folder: Path) -> None:
    notify(config(fire_after=1), folder, [DOWN], now=START)


def test_killed_while_it_sends_the_next_check_sends_it(there: Receiver, tmp_path: Path) -> None:
    from threading import Event

    asked, go_on = Event(), Event()

    def wait(_: object) -> tuple[int, bytes]:
        asked.set()
        go_on.wait(10)
        return 200, b""

    there.answer = wait
    process = multiprocessing.get_context("fork").Process(target=_notify_slowly, args=(tmp_path,))
    process.start()
    assert asked.wait(10)
    assert process.pid is not None
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there.answer = lambda _: (200, b"")
    go_on.set()
    there.received.clear()
    checks(config(fire_after=1), tmp_path, [DOWN])
    assert told(there) == [[("firing", "EngineDown")]]


def test_a_file_that_is_not_ours_silences_nobody(there: Receiver, tmp_path: Path) -> None:
    (tmp_path / "alerts.json").write_text('{"alerts": 3}')
    with pytest.raises(BadInput, match=r"alerts\.json"):
        read_alerts(tmp_path)
    checks(config(), tmp_path, [DOWN], [DOWN], [DOWN])
    assert told(there) == [[("firing", "EngineDown")]]
    assert (tmp_path / "alerts.unread").read_text() == '{"alerts": 3}'


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that takes nothing; the call makes room."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    writes = notify_module.write_text
    monkeypatch.setattr(notify_module, "write_text", refuse)
    return lambda: monkeypatch.setattr(notify_module, "write_text", writes)


def test_a_full_disk_silences_nobody(there: Receiver, tmp_path: Path, full: Callable[[], None]) -> None:
    memory = Memory()
    for at in range(4):
        notify(config(), tmp_path, [DOWN], memory=memory, now=START + timedelta(minutes=at))
    assert told(there) == [[("firing", "EngineDown")]]  # after two checks, and once, as ever
    full()
    for at in range(4, 8):
        notify(config(), tmp_path, [], memory=memory, now=START + timedelta(minutes=at))
    assert told(there)[1:] == [[("resolved", "EngineDown")]]
    assert memory.state is None
    assert read_alerts(tmp_path).alerts == {}


def test_one_check_on_a_full_disk_tells_at_once(there: Receiver, tmp_path: Path, full: Callable[[], None]) -> None:
    notify(config(), tmp_path, [DOWN], now=START)
    assert told(there) == [[("firing", "EngineDown")]]


def test_a_folder_that_cannot_be_used_silences_nobody(there: Receiver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notify(config(), tmp_path / "file" / "state", [DOWN], now=START)
    assert told(there) == [[("firing", "EngineDown")]]


def test_what_cannot_be_judged_is_not_told_to_be_over(there: Receiver, tmp_path: Path) -> None:
    found: list[tuple[list[Alert], set[str]]] = [([DOWN, HOT], set())] * 2 + [([], {"Hot"})] * 6 + [([], set())] * 2
    for at, (alerts, unknown) in enumerate(found):
        notify(config(), tmp_path, alerts, unknown=unknown, now=START + timedelta(minutes=at))
    assert told(there) == [
        [("firing", "EngineDown"), ("firing", "Hot")], [("resolved", "EngineDown")], [("resolved", "Hot")],
    ]  # fmt: skip


def test_a_sink_that_is_back_hears_of_it_soon(there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, tried = there.url, 0
    monkeypatch.setenv("A_WEBHOOK", "http://127.0.0.1:9/")
    for at in range(120):  # half an hour of looks, one every 15 s
        report = notify(config(), tmp_path, [DOWN], now=START + timedelta(seconds=15 * at))
        tried += len(report.deliveries)
    assert 10 <= tried <= 16
    monkeypatch.setenv("A_WEBHOOK", alive)
    notify(config(), tmp_path, [DOWN], now=START + timedelta(minutes=32))
    assert told(there) == [[("firing", "EngineDown")]]


def test_every_check_gives_a_sign_of_life_and_no_alert_with_it(
    there: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks = [{"kind": "heartbeat", "name": "alive", "url_from": "A_WEBHOOK"}]
    reports = checks(config(fire_after=1, sinks=sinks), tmp_path, [], [DOWN], [DOWN], [])
    assert [request.body for request in there.received] == [b""] * 4
    assert reports[-1].waiting == {"alive": 0}
    assert read_alerts(tmp_path).outboxes["alive"].sent == ()
    monkeypatch.setenv("A_WEBHOOK", "http://127.0.0.1:9/")
    reports = checks(config(sinks=sinks), tmp_path, *[[]] * 8, minutes=0.25)
    assert [len(report.deliveries) for report in reports] == [1, *[0] * 7]  # no look waits for it each time


def test_the_worst_finds_room_in_a_message(there: Receiver, tmp_path: Path) -> None:
    flood = [Alert("Many", "info", "x", {"n": str(at)}) for at in range(40)]
    checks(config(fire_after=1), tmp_path, [*flood, DOWN, HOT])
    [request] = there.received
    first, second, *_ = json.loads(request.body)["text"].splitlines()
    assert first.startswith("FIRING critical EngineDown")
    assert second.startswith("FIRING warning Hot")


def test_state_is_for_its_owner_alone(there: Receiver, tmp_path: Path) -> None:
    checks(config(), tmp_path, [DOWN])
    assert (tmp_path / "alerts.json").stat().st_mode & 0o077 == 0


def test_a_test_goes_to_the_named_sink_and_leaves_no_trace(there: Receiver, tmp_path: Path) -> None:
    [delivery] = send_test(config(), "w")
    assert delivery.error is None
    assert told(there) == [[("firing", "Test")]]
    with pytest.raises(BadInput, match="there are: w"):
        send_test(config(), "slack")


def test_the_command_says_what_became_of_it(
    there: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ours.yaml"
    text = (ROOT / "configs" / "smoke.yaml").read_text()
    path.write_text(f"{text}\nalerts: {{sinks: [{{kind: webhook, name: w, url_from: A_WEBHOOK}}]}}\n")
    assert cli.main(["alert", "test", "--config", str(path)]) == 0
    assert "taken" in capsys.readouterr().out
    there.answer = lambda _: (500, b"no")
    assert cli.main(["alert", "test", "w", "--config", str(path)]) == 1
    assert "answered 500" in capsys.readouterr().out
    assert cli.main(["alert", "test", "other", "--config", str(path)]) == 2


@settings(max_examples=200, deadline=None)
@given(found=st.lists(st.booleans(), max_size=40), fire=st.integers(1, 4), resolve=st.integers(1, 4))
def test_edges_alternate_and_come_only_after_enough_checks_in_a_row(found: list[bool], fire: int, resolve: int) -> None:
    rules = Alerts(fire_after=fire, resolve_after=resolve, repeat_hours=None)
    known, edges = {}, []
    for at, bad in enumerate(found):
        known, notices = follow(known, [DOWN] if bad else [], rules, START + timedelta(minutes=at))
        edges += [(at, notice.kind) for notice in notices]
    assert [kind for _, kind in edges] == (["firing", "resolved"] * len(found))[: len(edges)]
    for at, kind in edges:
        length = fire if kind == "firing" else resolve
        assert found[at + 1 - length : at + 1] == [kind == "firing"] * length
    assert bool(known) or not found or not found[-1]
