"""The front, with a real Caddy: who gets in, what waits, what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipelines.errors import EngineFailed, MachineUnfit
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import running, wait_until
from serving import front
from serving.client import healthy
from tests.serving.conftest import DOUBLE, Maker

StartFront = Callable[[float], None]


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
    for key in ("wrong", "Bearer", credential(machine.state, "front_key")[:-1], "{env.VLMOPS_FRONT_KEY}"):
        assert _get(machine, "/v1/models", key).status_code == 403, key
    assert httpx.get(f"{machine.front_url}/v1/models").status_code == 403


OTHER_PATHS = (
    *(
        "/",
        "/metrics",
        "/sleep",
        "/collective_rpc",
        "/invocations",
        "/tokenize",
        "/pause",
        "/reload_weights",
        "/health",
    ),
    *("/v1/load_lora_adapter", "/v1/models/x", "/v1/embeddings", "/v1/chat/completions/batch", "//metrics"),
    *("/v1/chat/completions/../../../metrics", "/v1/chat/completions%2f..%2f..%2f..%2fmetrics"),
)


def test_every_other_path_is_refused(front_with_engine: Settings) -> None:
    for path in OTHER_PATHS:
        for method in ("GET", "POST"):
            assert _get(front_with_engine, path, method=method).status_code == 403, path


def test_large_bodies_are_refused(front_with_engine: Settings) -> None:
    answer = _get(front_with_engine, "/v1/chat/completions", method="POST", content=b"x" * 21_000_000)
    assert answer.status_code == 413


def test_a_hold_ends_with_503_and_retry_after(front_with_engine: Settings) -> None:
    front.hold(front_with_engine)
    front.wait_noticed(front_with_engine)
    began = time.monotonic()
    answer = _get(front_with_engine, "/v1/models", timeout=10)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(front.RETRY_SECONDS))
    assert 2.5 < time.monotonic() - began < 5


def test_a_held_request_is_answered_after_the_release(front_with_engine: Settings) -> None:
    front.hold(front_with_engine)
    front.wait_noticed(front_with_engine)
    threading.Timer(1, front.release, (front_with_engine,)).start()
    answer = _get(front_with_engine, "/v1/models", timeout=10)
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() > 0.9


def test_requests_under_way_are_counted(front_with_engine: Settings) -> None:
    assert front.in_flight(front_with_engine) == 0
    body = {"model": "digits", "messages": [{"role": "user", "content": [{"type": "text", "text": "question 1"}]}]}
    seen = []
    asking = threading.Thread(
        target=lambda: [_get(front_with_engine, "/v1/chat/completions", method="POST", json=body) for _ in range(20)]
    )
    asking.start()
    while asking.is_alive():
        seen.append(front.in_flight(front_with_engine))
        time.sleep(0.01)
    assert max(seen) == 1
    assert front.in_flight(front_with_engine) == 0


def test_the_key_is_in_no_file_and_not_on_the_admin_port(front_with_engine: Settings) -> None:
    key = credential(front_with_engine.state, "front_key")
    holders = [path for path in front_with_engine.serving.rglob("*") if path.is_file() and key in path.read_text()]
    assert holders == []
    shown = httpx.get(f"http://127.0.0.1:{front_with_engine.admin_port}/config/").text
    assert "VLMOPS_FRONT_KEY" in shown
    assert key not in shown


def test_a_taken_port_is_named(machine: Settings, start_front: StartFront) -> None:
    start_front(3)
    with pytest.raises(MachineUnfit, match=r"port \d+ \((Caddy|ready|admin)\) is taken"):
        front.prepare(machine, 3)


def test_no_caddy_is_not_an_idle_caddy(machine: Settings, make: Maker) -> None:
    assert front.in_flight(machine) is None
    with running(make(1).launch(DOUBLE).command(machine.admin_port), machine.serving / "other.log"):
        time.sleep(0.5)
        with pytest.raises(EngineFailed, match=f"admin_port {machine.admin_port}"):
            front.in_flight(machine)
