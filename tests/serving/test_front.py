"""The front, with a real Caddy: who gets in, what waits, what is refused."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines.config import Serving
from pipelines.config_serving import Tls
from pipelines.errors import MachineUnfit
from pipelines.keys.store import add_key, revoke_key
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import free_port, running, wait_until
from serving import front
from serving.caddyfile import ADMIN, BUSY_SECONDS, RETRY_SECONDS
from serving.client import healthy
from serving.supervise import started
from tests.serving.conftest import DOUBLE, Maker

StartFront = Callable[..., None]

QUESTION = {"model": "digits", "messages": [{"role": "user", "content": [{"type": "text", "text": "question 1"}]}]}


@pytest.fixture
def front_with_engine(machine: Settings, make: Maker, start_front: StartFront) -> Iterator[Settings]:
    """Caddy and one engine that answers, released."""
    start_front(3)
    front.release(machine)
    with running(make(1).launch(DOUBLE).command(machine.engine_port), machine.serving / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        front.wait_noticed(machine)
        yield machine


def _get(machine: Settings, path: str, key: str | None = None, method: str = "GET", **more: object) -> httpx.Response:
    key = credential(machine.state, "front_key") if key is None else key
    return httpx.request(method, machine.front_url + path, headers={"Authorization": f"Bearer {key}"}, **more)


def test_who_gets_in(front_with_engine: Settings) -> None:
    machine = front_with_engine
    assert _get(machine, "/v1/models").status_code == 200
    for key in ("wrong", "Bearer", credential(machine.state, "front_key")[:-1], "{env.HOME}"):
        answer = _get(machine, "/v1/models", key)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), key
        assert answer.json()["error"]["code"] == 401
    answer = httpx.get(f"{machine.front_url}/v1/models")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_a_request_to_upgrade_is_one_like_others(front_with_engine: Settings) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = {**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": "Bearer wrong"}
    assert httpx.get(f"{front_with_engine.front_url}/v1/models", headers=headers).status_code == 401


def test_a_hold_is_followed_once_caddy_was_told_often_enough(front_with_engine: Settings) -> None:
    machine = front_with_engine
    front.hold(machine)
    front.wait_noticed(machine)
    with pytest.raises(httpx.ReadTimeout):
        _get(machine, "/v1/models", timeout=0.5)
    front.release(machine)
    assert _get(machine, "/v1/models").status_code == 200


def test_where_no_caddy_runs_nobody_waits_for_it(machine: Settings) -> None:
    front.hold(machine)
    began = time.monotonic()
    front.wait_noticed(machine)
    assert time.monotonic() - began < front.NOTICE_SECONDS


def test_keys_are_added_and_revoked_while_it_runs(front_with_engine: Settings) -> None:
    key = add_key(front_with_engine, "team-a")
    assert _get(front_with_engine, "/v1/models", key).status_code == 200
    revoke_key(front_with_engine, "team-a")
    assert _get(front_with_engine, "/v1/models", key).status_code == 401
    assert _get(front_with_engine, "/v1/models").status_code == 200


def test_a_key_that_asks_too_often_is_told_when_to_come_again(front_with_engine: Settings) -> None:
    key = add_key(front_with_engine, "team-a", per_minute=6, burst=2)
    answers = [_get(front_with_engine, "/v1/models", key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) in {9, 10}


def test_without_the_keys_service_nobody_gets_in(front_with_engine: Settings) -> None:
    _keys_service(front_with_engine).kill()
    answer = _get(front_with_engine, "/v1/models", timeout=20)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(BUSY_SECONDS))
    assert answer.json()["error"]["message"] == "keys cannot be checked now"


def test_a_keys_service_that_hangs_lets_nobody_in(front_with_engine: Settings) -> None:
    service = _keys_service(front_with_engine)
    service.suspend()
    answer = _get(front_with_engine, "/v1/models", timeout=20)
    service.kill()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(BUSY_SECONDS))


def _keys_service(machine: Settings) -> psutil.Process:
    listening = [c for c in psutil.net_connections() if c.laddr and c.laddr.port == machine.keys_port]
    return psutil.Process(next(c.pid for c in listening if c.status == psutil.CONN_LISTEN and c.pid))


def test_large_bodies_are_refused(front_with_engine: Settings) -> None:
    answer = _get(front_with_engine, "/v1/chat/completions", method="POST", content=b"x" * 21_000_000)
    assert answer.status_code == 413


def test_a_hold_ends_with_503_and_retry_after(front_with_engine: Settings) -> None:
    front.hold(front_with_engine)
    front.wait_noticed(front_with_engine)
    began = time.monotonic()
    answer = _get(front_with_engine, "/v1/models", timeout=10)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(RETRY_SECONDS))
    assert 2.5 < time.monotonic() - began < 9


def test_a_held_request_is_answered_after_the_release(front_with_engine: Settings) -> None:
    front.hold(front_with_engine)
    front.wait_noticed(front_with_engine)
    threading.Timer(1, front.release, (front_with_engine,)).start()
    answer = _get(front_with_engine, "/v1/models", timeout=10)
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() > 0.9


def test_requests_under_way_are_counted(front_with_engine: Settings) -> None:
    assert front.in_flight(front_with_engine) == 0
    seen = []
    asking = threading.Thread(
        target=lambda: [
            _get(front_with_engine, "/v1/chat/completions", method="POST", json=QUESTION) for _ in range(20)
        ]
    )
    asking.start()
    while asking.is_alive():
        seen.append(front.in_flight(front_with_engine))
        time.sleep(0.01)
    assert max(seen) == 1
    assert front.in_flight(front_with_engine) == 0


def test_a_full_queue_is_told_when_to_come_again(machine: Settings, make: Maker, start_front: StartFront) -> None:
    start_front(3)
    front.release(machine)
    version = make(1, seconds=1.0)
    version = version.model_copy(
        update={"serving": version.serving.model_copy(update={"max_num_seqs": 1, "max_waiting": 1})}
    )
    with running(version.launch(DOUBLE).command(machine.engine_port), machine.serving / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        front.wait_noticed(machine)
        with ThreadPoolExecutor(4) as threads:
            answers = list(
                threads.map(lambda _: _get(machine, "/v1/chat/completions", method="POST", json=QUESTION), range(4))
            )
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200, 200, 503, 503]
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert busy.headers["Retry-After"] == str(BUSY_SECONDS)
    assert "busy" in busy.json()["error"]["message"]


def test_what_is_logged_of_a_request(front_with_engine: Settings) -> None:
    key = credential(front_with_engine.state, "front_key")
    headers = {"Cookie": "session=of-a-client"}
    body = {**QUESTION, "user": "of-a-body"}
    answer = httpx.post(
        f"{front_with_engine.front_url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {key}", **headers},
    )
    assert answer.status_code == 200
    _get(front_with_engine, "/v1/models?token=of-a-query")
    log = front_with_engine.serving / "access.log"
    wait_until(lambda: log.read_text().count("\n") == 2, 30, lambda: AssertionError(log.read_text()), 0.05)
    assert log.stat().st_mode & 0o777 == 0o600
    asked, refused = map(json.loads, log.read_text().splitlines())
    assert (asked["request"]["uri"], asked["status"], asked["key"]) == ("/v1/chat/completions", 200, "default")
    assert (refused["request"]["uri"], refused["status"]) == ("/v1/models", 404)
    assert not [secret for secret in (key, "of-a-client", "of-a-body", "of-a-query") if secret in log.read_text()]


def test_metrics_are_on_loopback_ports_and_hold_no_key(front_with_engine: Settings) -> None:
    machine = front_with_engine
    assert _get(machine, "/v1/models").status_code == 200
    keys = httpx.get(f"http://127.0.0.1:{machine.keys_port}/metrics").text
    caddy = httpx.get(f"http://127.0.0.1:{machine.ready_port}/metrics").text
    assert 'vlmops_front_requests_total{key="default",outcome="admitted"} 1.0' in keys
    assert "caddy_http_requests_total" in caddy
    assert credential(machine.state, "front_key") not in keys + caddy
    ports = {machine.front_port, machine.ready_port, machine.keys_port}
    listening = {c.laddr for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN and c.laddr.port in ports}
    assert {address.port for address in listening} == ports
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_the_admin_endpoint_is_no_port_but_a_file_of_ours_alone(front_with_engine: Settings) -> None:
    machine = front_with_engine
    assert (machine.serving / ADMIN).stat().st_mode & 0o777 == 0o600
    caddy = next(p for p in psutil.Process().children(recursive=True) if p.cmdline() == front.wards(machine)[1].command)
    listening = {c.laddr.port for c in caddy.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {machine.front_port, machine.ready_port}


def test_the_front_gets_no_secret_of_who_starts_it(
    machine: Settings, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "AIRFLOW__API__SECRET_KEY": "do-not-tell",
        "VLMOPS_SMTP_PASSWORD": "do-not-tell",
        "HTTPS_PROXY": "http://user:do-not-tell@proxy:3128",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    front.prepare(machine, serving)
    wards = front.wards(machine)
    with started(wards):
        inherited = [psutil.Process(ward.process.pid).environ() for ward in wards if ward.process]
    assert len(inherited) == 2
    assert not any("do-not-tell" in value for environment in inherited for value in environment.values())


def test_a_folder_whose_name_is_longer_than_a_socket_s_path_may_be(
    machine: Settings, serving: Serving, tmp_path: Path
) -> None:
    far = machine.model_copy(update={"home": tmp_path / ("x" * 120)})
    front.prepare(far, serving)
    caddy = front.wards(far)[1]
    with running(caddy.command, tmp_path / "caddy.log", caddy.environment, caddy.folder):
        wait_until(lambda: front.in_flight(far) == 0, 10, lambda: AssertionError("no Caddy"), 0.05)


def test_the_key_is_in_no_file_and_not_on_the_admin_port(front_with_engine: Settings) -> None:
    key = credential(front_with_engine.state, "front_key")
    holders = [path for path in front_with_engine.serving.rglob("*") if path.is_file() and key in path.read_text()]
    assert holders == []
    shown = (front_with_engine.serving / "Caddyfile").read_text()
    assert "/authorize" in shown
    assert key not in shown


def test_a_taken_port_is_named(machine: Settings, serving: Serving, start_front: StartFront) -> None:
    start_front(3)
    with pytest.raises(MachineUnfit, match=r"port \d+ \(Caddy; VLMOPS_FRONT_PORT\) is taken"):
        front.prepare(machine, serving)


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("box.lan", True)],
)
def test_plain_http_beyond_this_machine_is_warned_of(
    machine: Settings, serving: Serving, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    there = machine.model_copy(update={"front_host": host})
    front.prepare(there, serving)
    assert ("unencrypted" in caplog.text) == warned
    caplog.clear()
    with_tls = serving.model_copy(update={"tls": Tls(name="box.lan", port=free_port())})
    front.prepare(there, with_tls)
    assert "unencrypted" not in caplog.text


def test_no_caddy_is_not_an_idle_caddy(machine: Settings) -> None:
    assert front.in_flight(machine) is None
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(machine.serving / ADMIN))
        assert front.in_flight(machine) is None  # what a killed Caddy leaves behind
