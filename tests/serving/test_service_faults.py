"""What people want of the service stands, and what looks after it finds what died promoters and crashes leave."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipelines.config import Config, Hardware
from pipelines.errors import BAD_INPUT, BadInput, EngineFailed, MachineUnfit, PromotionFailed
from pipelines.launch import environment
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.durable import append_line
from pipelines.system.processes import running as started
from pipelines.system.processes import wait_until
from serving import front, memory, service
from serving.engine import alive, group
from serving.memory import GIB, CardMemory, wait_for_room
from serving.promote import Promotion
from serving.promotion import recover
from serving.promotion.deploy_log import DeployLog
from serving.promotion.lock import deploy_lock
from serving.promotion.recover import Recovery, start_again, trouble
from serving.served import Served, read_served, running
from serving.service import status, stop_service
from serving.watch import LOOK_SECONDS
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry


@pytest.fixture
def promote(machine: Settings, registry: RecordingRegistry) -> Callable[[Served], object]:
    """Promotes a version."""
    return lambda version: Promotion(machine, registry, version, DOUBLE).run()


@pytest.fixture
def recovery(machine: Settings, registry: RecordingRegistry) -> Recovery:
    """Looks after the double."""
    return Recovery(machine, registry, DOUBLE)


def _kill(machine: Settings) -> None:
    for leader in running(machine):
        os.killpg(leader, signal.SIGKILL)
        while group(leader):
            time.sleep(0.02)


def _fragile(version: Served) -> Served:
    """One whose first end is one too many."""
    return version.model_copy(update={"serving": version.serving.model_copy(update={"crashes": 1})})


def test_an_engine_that_had_just_ended_stays_stopped(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    _kill(machine)
    stop_service(machine)
    assert DeployLog(machine.serving).read()[-1].detail == "no engine ran"
    assert (recovery.look(), running(machine)) == (None, {})


def test_a_refused_promotion_does_not_undo_a_stop(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    stop_service(machine)
    tampered = make(2)
    (tampered.model / "chat_template.jinja").write_text("x")
    with pytest.raises(PromotionFailed):
        promote(tampered)
    assert (recovery.look(), running(machine)) == (None, {})


def test_a_promotion_ends_a_stop(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(version := make(1))
    stop_service(machine)
    promote(version)
    _kill(machine)
    assert recovery.look() == "v1 serves again"


def test_a_stop_while_the_supervisor_waits_to_start_it_again_stands(
    machine: Settings,
    recovery: Recovery,
    make: Maker,
    promote: Callable[[Served], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote(make(1))
    _kill(machine)
    monkeypatch.setattr(recover, "wait_seconds", lambda _: 1.0)
    person = threading.Timer(0.3, stop_service, [machine])
    person.start()
    assert recovery.look() is None
    person.join()
    assert (running(machine), status(machine)["state"]) == ({}, "stopped")


def test_a_promotion_between_look_and_way_back_stands(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    third = make(3)

    class Slow(Recovery):
        def crashes(self, version: Served) -> int:
            """Counted after the look; meanwhile a person promotes."""
            promote(third)
            return super().crashes(version)

    for version in (make(1), _fragile(make(2))):
        promote(version)
    _kill(machine)
    assert Slow(machine, registry, DOUBLE).look() is None
    assert (status(machine)["version"], registry.champion, registry.failed) == (3, 3, {})


def test_without_a_registry_what_keeps_ending_is_started_all_the_same(
    machine: Settings,
    registry: RecordingRegistry,
    recovery: Recovery,
    make: Maker,
    promote: Callable[[Served], object],
) -> None:
    for version in (make(1), _fragile(make(2))):
        promote(version)
    _kill(machine)
    registry.reachable = False
    assert recovery.look() == "v2 serves again"


def test_a_stop_lets_requests_end(
    machine: Settings, make: Maker, start_front: Callable[[float], None], promote: Callable[[Served], object]
) -> None:
    start_front(20)
    promote(make(1, seconds=0.5))
    answered: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answered.append(_ask(machine)))
    asking.start()
    time.sleep(0.2)
    stop_service(machine)
    asking.join()
    assert [answer.status_code for answer in answered] == [httpx.codes.OK]
    assert "cut" not in DeployLog(machine.serving).read()[-1].detail


def test_what_a_stop_cuts_is_counted(
    machine: Settings, make: Maker, start_front: Callable[[float], None], promote: Callable[[Served], object]
) -> None:
    start_front(20)
    version = make(1)
    promote(version.model_copy(update={"serving": version.serving.model_copy(update={"drain_seconds": 1.0})}))
    with closing(socket.create_connection(("127.0.0.1", machine.front_port))) as slow:
        slow.sendall(_head(machine) + b"Content-Length: 1000\r\n\r\n{")
        time.sleep(0.5)
        stop_service(machine)
    assert "cut: requests under way: 1 at the front" in DeployLog(machine.serving).read()[-1].detail


def _ask(machine: Settings) -> httpx.Response:
    messages = [{"role": "user", "content": [{"type": "text", "text": "question 1"}]}]
    key = {"Authorization": f"Bearer {credential(machine.state, 'front_key')}"}
    url = f"{machine.front_url}/v1/chat/completions"
    return httpx.post(url, headers=key, json={"model": "digits", "messages": messages}, timeout=30)


def _head(machine: Settings) -> bytes:
    key = credential(machine.state, "front_key")
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()


def test_who_gives_up_stopping_leaves_the_front_open(
    machine: Settings, make: Maker, promote: Callable[[Served], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(make(1))

    def interrupt(_: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(front, "wait_noticed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stop_service(machine)
    assert (len(running(machine)), front.holding(machine), front.stopped(machine)) == (1, False, False)


def test_stop_and_start_move_the_alias_serving(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    stop_service(machine, registry)
    assert registry.serving is None
    start_again(machine, DOUBLE, registry)
    assert registry.serving == 1
    registry.reachable = False
    stop_service(machine, registry)
    assert status(machine)["state"] == "stopped"


def test_a_look_at_a_hanging_engine_keeps_nobody_from_stopping_it(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    for leader in running(machine):
        os.killpg(leader, signal.SIGSTOP)
    looking = threading.Thread(target=recovery.look, daemon=True)
    looking.start()
    time.sleep(0.5)
    began = time.monotonic()
    stop_service(machine)
    assert time.monotonic() - began < 20  # the engine is asked once how it is, and then not waited for
    looking.join()
    assert (running(machine), trouble(machine)) == ({}, None)


def test_a_command_waits_for_who_is_about_to_end(machine: Settings) -> None:
    busy = multiprocessing.get_context("fork").Process(target=_hold_lock, args=(machine, 1.5))
    busy.start()
    while not (machine.serving / "lock").is_file() or not (machine.serving / "lock").read_text():
        time.sleep(0.02)
    with pytest.raises(PromotionFailed, match=f"process {busy.pid} "), deploy_lock(machine, 0):
        pass
    stop_service(machine)
    busy.join()
    assert status(machine)["state"] == "stopped"


def _hold_lock(machine: Settings, seconds: float) -> None:
    with deploy_lock(machine):
        time.sleep(seconds)


def test_an_engine_whose_log_was_deleted_is_still_known(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    version = make(1)
    promote(version)
    before = running(machine)
    version.log(machine).unlink()
    assert running(machine) == before
    assert recovery.look() is None
    stop_service(machine)
    assert running(machine) == {}


def test_a_stranger_at_the_engine_s_port_holds_nobody(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    _kill(machine)
    with closing(socket.create_server(("127.0.0.1", machine.engine_port))) as stranger:
        stranger.listen()
        threading.Thread(target=_turn_away, args=(stranger,), daemon=True).start()
        with pytest.raises(MachineUnfit, match=f"port {machine.engine_port}"):
            recovery.look()
        assert not front.holding(machine)


def _turn_away(stranger: socket.socket) -> None:
    while True:
        try:
            stranger.accept()[0].close()
        except OSError:
            return


@pytest.mark.parametrize(("fault", "end"), [("", 2), ("exits", 1)])
def test_a_version_whose_promoter_died_in_the_watch_is_watched(
    fault: str,
    end: int,
    machine: Settings,
    registry: RecordingRegistry,
    recovery: Recovery,
    make: Maker,
    promote: Callable[[Served], object],
) -> None:
    promote(make(1))
    second = make(2, fault, at=14)  # six are asked by the swap, six before the watch
    killed = multiprocessing.get_context("fork").Process(target=_die_in_the_watch, args=(machine, registry, second))
    killed.start()
    killed.join()
    assert (read_served(machine), registry.champion, trouble(machine)) == (second, 1, "unconfirmed")
    if fault:
        with pytest.raises(PromotionFailed, match="v1 serves again"):
            recovery.look()
    else:
        assert recovery.look() == "v2 has passed its watch"
    assert (status(machine)["version"], registry.champion, trouble(machine)) == (end, end, None)


def _die_in_the_watch(machine: Settings, registry: RecordingRegistry, version: Served) -> None:
    class Mortal(Promotion):
        def _watch(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    Mortal(machine, registry, version, DOUBLE).run()


def test_without_a_front_nobody_is_told_that_it_serves(
    machine: Settings, make: Maker, start_front: Callable[[float], None], promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    assert status(machine)["state"] == "unreachable"
    start_front(5)
    assert status(machine)["state"] == "serving"


def test_a_deploy_log_that_is_gone_stops_no_supervisor(
    machine: Settings, recovery: Recovery, make: Maker, promote: Callable[[Served], object]
) -> None:
    promote(make(1))
    (machine.serving / "deploy.jsonl").unlink()
    assert recovery.look() is None


@pytest.mark.parametrize("name", ["serving.json", "confirmed.json"])
def test_what_another_release_wrote_is_named_with_a_way_out(
    name: str,
    machine: Settings,
    recovery: Recovery,
    make: Maker,
    promote: Callable[[Served], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    promote(make(1))
    path = machine.serving / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    with pytest.raises(BadInput, match=rf"{name} says nothing.*later.*move it away"):
        recovery.look()
    if name == "serving.json":
        assert service.main(["status"]) == BAD_INPUT
        assert capsys.readouterr().out == ""


def test_a_log_has_no_empty_lines(tmp_path: Path) -> None:
    for line in ("first", "second"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


CARD = Hardware(name="a card", device="cuda", memory_gib=48, card_gib=140)


@pytest.mark.parametrize("falls", [True, False])
def test_the_next_engine_waits_for_the_card_s_memory(
    falls: bool, smoke: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([10, 20, 60 if falls else 30] + [30] * 100)  # GiB free of 140; the driver frees one piece at a time
    monkeypatch.setattr(memory, "freest_card", lambda: CardMemory(next(told) * GIB, 140 * GIB))
    serving = smoke.serving.model_copy(update={"gpu_memory_utilization": 0.9})
    if falls:
        wait_for_room(serving, CARD)
        assert next(told) == 30
    else:
        with pytest.raises(EngineFailed, match=r"30\.0 of the card's 140\.0 GiB are free, and .* 43\.2"):
            wait_for_room(serving, CARD, seconds=0.5)


def test_a_restart_on_a_card_waits_before_it_starts(
    machine: Settings, make: Maker, promote: Callable[[Served], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(make, device="cuda", serving=make.serving.model_copy(update={"strategy": "restart"}))
    asked: list[dict[int, Path]] = []

    def look() -> CardMemory:
        asked.append(running(machine))
        return CardMemory(140 * GIB, 140 * GIB)

    promote(card(1))
    monkeypatch.setattr(memory, "freest_card", look)
    promote(card(2))
    assert asked == [{}]  # one look, with nothing of the old engine left and nothing of the new one there


def test_start_stop_and_watch_are_processes(
    machine: Settings, make: Maker, promote: Callable[[Served], object], tmp_path: Path
) -> None:
    promote(make(1))
    _kill(machine)
    env = environment(machine) | {"PYTHONPATH": _stub_of_vllm(tmp_path), "VLMOPS_MLFLOW_URI": "http://127.0.0.1:1"}

    def service_command(action: str) -> dict[str, object]:
        command = [sys.executable, "-m", "serving.service", action]
        return json.loads(subprocess.run(command, env=env, capture_output=True, check=True, timeout=60).stdout)

    def serves() -> bool:
        return not front.holding(machine) and any(map(alive, running(machine)))

    watching = [sys.executable, "-m", "serving.watch"]
    with started(watching, tmp_path / "watch.log", env) as watch:  # without an MLflow that answers
        wait_until(lambda: _lines(tmp_path / "watch.log", "v1 serves again"), 30, lambda: EngineFailed("not started"))
        assert serves()
        assert service_command("stop")["state"] == "stopped"
        time.sleep(2 * LOOK_SECONDS)
        assert running(machine) == {}
        assert service_command("start")["state"] == "unreachable"  # there is no front
        assert serves()
        watch.terminate()
        assert watch.wait(10) == 128 + signal.SIGTERM
    assert serves()  # it outlives who started it, and who looks after it


def _stub_of_vllm(tmp_path: Path) -> str:
    """A folder that goes before the installed vLLM: its command is the double's."""
    (program := tmp_path / "stub/vllm/entrypoints/cli").mkdir(parents=True)
    for package in (program, *program.parents[:2]):
        (package / "__init__.py").touch()
    double = f"import runpy, sys\nsys.argv.remove('serve')\nrunpy.run_path({DOUBLE[1]!r}, run_name='__main__')\n"
    (program / "main.py").write_text(double)
    return str(tmp_path / "stub")


def _lines(log: Path, text: str) -> bool:
    return log.is_file() and text in log.read_text()
