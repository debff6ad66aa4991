"""An HTTP server on loopback that serves bytes by path, and spoils its answers as a test asks."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Answer:
    """What the server is about to send."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    """Bytes of the body after which the connection is closed."""

    hold: threading.Event | None = None
    """Waited for before the connection is closed there."""


Fault = Callable[[Answer], Answer]


def cut(share: float, hold: threading.Event | None = None) -> Fault:
    """Close the connection after a share of the body."""
    return lambda answer: replace(answer, cut_at=int(len(answer.body) * share), hold=hold)


def wrong_bytes(answer: Answer) -> Answer:
    """As long as the right ones."""
    return replace(answer, body=bytes(255 - byte for byte in answer.body))


def whole_again(body: bytes) -> Fault:
    """Ignore the range that was asked for."""
    return lambda answer: Answer(200, body)


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    """Send a status and nothing else."""
    return lambda answer: Answer(code, headers=headers or {})


def moved(to: str) -> Fault:
    """Send to another server, as hubs do for large files."""
    return status(302, {"Location": to})


@dataclass(frozen=True)
class Seen:
    """A request."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class Site(ThreadingHTTPServer):
    """Serves `bodies` by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, bytes] = {}
        self.headers: dict[str, Mapping[str, str]] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        """Each spoils one answer."""

        self.always: dict[str, Fault] = {}
        self.seen: list[Seen] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, ending: str) -> list[Seen]:
        """The requests for paths with that ending."""
        return [seen for seen in self.seen if seen.path.endswith(ending)]

    def ranges(self, ending: str) -> list[str | None]:
        """The ranges that were asked for, one per request."""
        return [seen.headers.get("range") for seen in self.asked(ending)]

    def answer(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        if seen.path not in self.bodies:
            return Answer(404)
        answer = Answer(200, self.bodies[seen.path], self.headers.get(seen.path, {}))
        if "range" in seen.headers:
            first = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-"))
            total = len(answer.body)
            said = {**answer.headers, "Content-Range": f"bytes {first}-{total - 1}/{total}"}
            answer = replace(answer, status=206, body=answer.body[first:], headers=said)
        if self.faults[seen.path]:
            return self.faults[seen.path].popleft()(answer)
        return self.always[seen.path](answer) if seen.path in self.always else answer


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answer(Seen(self.command, unquote(address.path), address.query, headers))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: answer.cut_at])
        if answer.cut_at is not None:
            self.wfile.flush()
            if answer.hold is not None:
                answer.hold.wait(60)
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield site
        site.shutdown()
        thread.join()
