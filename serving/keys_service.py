"""The keys service: Caddy asks it about each request's key, and it counts per name.

    python -m serving.keys_service      on loopback, port VLMOPS_KEYS_PORT

    GET /authorize    200 with the key's name, 401, or 429 with Retry-After; 503 while the keys cannot be read
    GET /metrics      requests per name and outcome, for Prometheus; never a key

It sees headers only: Caddy keeps the body. A change of the keys holds from the next request on, since each looks at the
file's time and size. Rates start afresh when it is restarted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Counter, generate_latest

from pipelines.keys.store import Key, keys_file, parse_keys
from pipelines.settings import Settings

NAME_HEADER = "Vlmops-Key"
"""Carries the key's name to the access log."""

IDLE_SECONDS = 75
"""Longer than Caddy keeps an idle connection, so that it never sends on one that is being closed."""


@dataclass(frozen=True)
class Verdict:
    """What Caddy is told; unless it is 200, the client is told the same."""

    status: int
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """In the form of OpenAI's errors, which clients know how to show."""
        if not self.message:
            return b""
        return json.dumps({"error": {"message": self.message, "type": "front", "code": self.status}}).encode()


@dataclass
class Bucket:
    """Requests that a key may still make: filled at its rate up to its burst."""

    per_second: float
    burst: int
    tokens: float
    filled: float
    """When, on the monotonic clock."""

    def wait(self, now: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.filled) * self.per_second)
        self.filled = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.per_second


class Keys:
    """The keys as they are in the file now.

    Raises:
        OSError: There is no file, or it cannot be read.
        ValueError: It is not what we wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, presented: bytes) -> Key | None:
        """The key, whatever its standing. As long for a right one as for a wrong one: all are compared, and whole."""
        digest, found = hashlib.sha256(presented).hexdigest(), None
        for key in self._current():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _current(self) -> tuple[Key, ...]:
        status = self._path.stat()
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen != self._seen:
            self._keys = parse_keys(self._path.read_bytes())
            self._seen = seen
        return self._keys


class Doorkeeper:
    """Decides about requests and counts them."""

    def __init__(self, path: Path) -> None:
        self._keys = Keys(path)
        self._buckets: dict[str, Bucket] = {}
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vlmops_front_requests", "Requests by key and what became of them.", ("key", "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self._unknown = Counter("vlmops_front_unknown_keys", "Requests with no key of ours.", registry=self.registry)

    def decide(self, authorization: Sequence[bytes]) -> Verdict:
        """Whether a request may go on.

        Args:
            authorization: Every header of that name.
        """
        try:
            key = self._keys.find(_bearer(authorization))
        except (OSError, ValueError):
            return Verdict(503, "keys cannot be checked now", {"Retry-After": "5"})
        if key is None:
            self._unknown.inc()
            return _refusal("no valid key: send `Authorization: Bearer KEY`")
        standing = key.standing(datetime.now(UTC))
        if standing != "good":
            self._count(key, standing)
            return _refusal(f"this key was {standing}" if standing == "revoked" else "this key has expired")
        wait = self._wait(key)
        self._count(key, "limited" if wait else "admitted")
        if wait:
            return Verdict(429, f"more than {key.per_minute} requests a minute", {"Retry-After": str(math.ceil(wait))})
        return Verdict(200, headers={NAME_HEADER: key.name})

    def _wait(self, key: Key) -> float:
        if key.per_minute is None:
            return 0.0
        now, per_second = time.monotonic(), key.per_minute / 60
        bucket = self._buckets.get(key.sha256)
        if bucket is None:
            bucket = self._buckets[key.sha256] = Bucket(per_second, key.burst, key.burst, now)
        return bucket.wait(now)

    def _count(self, key: Key, outcome: str) -> None:
        self._requests.labels(key.name, outcome).inc()


def _bearer(authorization: Sequence[bytes]) -> bytes:
    """The key that was sent; nothing where there are several headers, or another scheme."""
    scheme, _, key = authorization[0].partition(b" ") if len(authorization) == 1 else (b"", b"", b"")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _refusal(message: str) -> Verdict:
    return Verdict(401, message, {"WWW-Authenticate": "Bearer"})


Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Service:
    """The ASGI application: bare, since it is in the way of every request."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's
        """Answer one request."""
        if scope["path"] == "/authorize":
            verdict = self._doorkeeper.decide([v for name, v in scope["headers"] if name == b"authorization"])
            kind = {"Content-Type": "application/json"} if verdict.message else {}
            await _send(send, verdict.status, {**verdict.headers, **kind}, verdict.body)
        elif scope["path"] == "/metrics":
            shown = generate_latest(self._doorkeeper.registry)
            await _send(send, 200, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, shown)
        else:
            await _send(send, 404, {}, b"")


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    lines.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until stopped."""
    settings = Settings()
    uvicorn.run(
        Service(Doorkeeper(keys_file(settings))),
        host="127.0.0.1",
        port=settings.keys_port,
        lifespan="off",
        ws="none",  # a request to upgrade is one like others
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=IDLE_SECONDS,
    )


if __name__ == "__main__":
    main()
