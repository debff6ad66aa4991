"""Whatever is not listed is refused by the front, and reaches no engine: in place of one listens a canary."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from pipelines.settings import Settings
from pipelines.system.credentials import credential
from serving import front

REFUSED = {400, 401, 403, 404, 405}

ADMIN = (
    *("/", "/metrics", "/health", "/ping", "/version", "/load", "/server_info", "/docs", "/openapi.json"),
    *("/invocations", "/tokenize", "/detokenize", "/pooling", "/score", "/classify", "/rerank", "/generate"),
    *("/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/reload_weights", "/collective_rpc"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/start_profile", "/update_weights", "/weight_info", "/authorize"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/embeddings", "/v1/responses", "/v1/audio/speech"),
    *("/v1", "/v1/", "/v1/models/x", "/v1/chat", "/v1/chat/completions/batch", "/v1/chat/completions/render"),
)
TRICKS = (
    *("//v1/models", "/v1//models", "/v1/models/", "/v1/models.", "/v1/models%20", "/v1/models%00", "/v1/models;x"),
    *("/V1/models", "/v1/Models", "/v1/%6dodels", "/v1%2fmodels", "/%2e/v1/models", "/./v1/models", "/x/../v1/models"),
    *("/v1/models/../../metrics", "/v1/models/..%2f..%2fmetrics", "/v1/models%2f..%2f..%2fmetrics", "//metrics"),
    *("/%2e%2e/metrics", "/v1/models\\..\\..\\metrics", "/v1/models?x=1", "/v1/models?", "/v1/models%3f", "*"),
    *("http://127.0.0.1/metrics", "http://127.0.0.1//v1/models", "/v1/models%0d%0aX:%20y", "/\xff/v1/models"),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "PROPFIND")


@dataclass
class Canary:
    """Listens where the engine should, and notes what it hears."""

    machine: Settings
    heard: list[bytes] = field(default_factory=list)

    def ask(self, method: str, target: str, *more: str, key: str | None = None) -> int:
        """Send bytes of our own making: a client would mend the target first. The status of the answer."""
        key = credential(self.machine.state, "front_key") if key is None else key
        lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Connection: close", *more]
        with socket.create_connection(("127.0.0.1", self.machine.front_port), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            return int(connection.recv(100).split(b" ")[1])


@pytest.fixture
def canary(machine: Settings, start_front: Callable[..., None]) -> Iterator[Canary]:
    start_front(3)
    front.release(machine)
    front.wait_noticed(machine)
    canary = Canary(machine)
    with socket.create_server(("127.0.0.1", machine.engine_port)) as server:

        def listen() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    canary.heard.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield canary
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_only_what_is_listed_reaches_the_engine(canary: Canary) -> None:
    for target in (*ADMIN, *TRICKS):
        for method in ("GET", "POST"):
            assert canary.ask(method, target, "Content-Length: 0") in REFUSED, (method, target)
    for target in ("/v1/models", "/v1/chat/completions", "/v1/completions", "/metrics"):
        for method in METHODS:
            if (method, target) not in {
                ("GET", "/v1/models"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/v1/completions"),
            }:
                assert canary.ask(method, target, "Content-Length: 0") in REFUSED, (method, target)
    assert canary.heard == []


def test_the_listed_do(canary: Canary) -> None:
    assert canary.ask("GET", "/v1/models") == 200
    assert canary.ask("POST", "/v1/chat/completions", "Content-Length: 0") == 200
    assert canary.ask("POST", "/v1/completions", "Content-Length: 0") == 200
    assert [heard.split(b" HTTP")[0] for heard in canary.heard] == [
        b"GET /v1/models",
        b"POST /v1/chat/completions",
        b"POST /v1/completions",
    ]


def test_headers_change_neither_path_nor_method(canary: Canary) -> None:
    for header in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Path"):
        assert canary.ask("GET", "/nothing", f"{header}: /v1/models") == 404
        assert canary.ask("GET", "/v1/models", f"{header}: /metrics") == 200
    for header in ("X-HTTP-Method-Override", "X-Forwarded-Method"):
        assert canary.ask("GET", "/v1/chat/completions", f"{header}: POST") == 405
    assert {heard.split(b" HTTP")[0] for heard in canary.heard} == {b"GET /v1/models"}


def test_no_key_and_wrong_keys(canary: Canary) -> None:
    for key in ("", "wrong", "x" * 10_000, "{env.HOME}", "\x00", "Bearer", "é"):
        assert canary.ask("GET", "/v1/models", key=key) in {400, 401}, key
    assert canary.ask("GET", "/v1/models", "Authorization: Bearer other") == 401
    assert canary.ask("GET", "/v1/models", "X: " + "x" * 100_000) == 431
    assert canary.heard == []


def test_the_engine_is_told_no_key_and_clients_cannot_name_themselves(canary: Canary) -> None:
    assert canary.ask("GET", "/v1/models", "Vlmops-Key: admin") == 200
    (heard,) = canary.heard
    assert b"authorization" not in heard.lower()
    assert credential(canary.machine.state, "front_key").encode() not in heard
    assert [line for line in heard.lower().split(b"\r\n") if b"vlmops-key" in line] == [b"vlmops-key: default"]


def test_two_lengths_are_no_request(canary: Canary) -> None:
    assert canary.ask("POST", "/v1/completions", "Content-Length: 5", "Content-Length: 6") == 400
    smuggled = canary.ask("POST", "/v1/completions", "Content-Length: 5", "Transfer-Encoding: chunked", "", "0")
    assert smuggled in {200, 400}
    assert not any(b"Content-Length: 5" in heard for heard in canary.heard)
