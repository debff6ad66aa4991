"""Local servers that stand where chats and mail are: they keep what they are sent, and answer what they are told."""

from __future__ import annotations

import base64
import socketserver
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import cast


@dataclass
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Received], tuple[int, bytes]]


@dataclass
class Receiver:
    """What an HTTP server was sent."""

    url: str
    answer: Answer
    received: list[Received] = field(default_factory=list)


@contextmanager
def receiver(answer: Answer) -> Iterator[Receiver]:
    """A server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = Received(self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])))
            state.received.append(request)
            status, body = state.answer(request)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{state.url}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            with suppress(OSError):  # whoever asked is gone: late, or killed
                self.end_headers()
                self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = Receiver(f"http://127.0.0.1:{server.server_address[1]}", answer)
    with _serving(server):
        yield state


@contextmanager
def dripping() -> Iterator[str]:
    """The address of a server that answers a byte every 50 ms, without end."""
    over = Event()

    class Drip(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            try:
                while not over.is_set():
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    with _serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"
        over.set()


@dataclass
class Mailbox:
    """What an SMTP server was sent."""

    port: int
    logins: list[str] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)


class MailServer(socketserver.ThreadingTCPServer):
    """An SMTP server on loopback."""

    daemon_threads = True

    def __init__(self, certificate: Path | None, refuse: str) -> None:
        super().__init__(("127.0.0.1", 0), Dialogue)
        self.certificate, self.refuse = certificate, refuse
        self.box = Mailbox(cast("int", self.server_address[1]))


class Dialogue(socketserver.StreamRequestHandler):
    """One client's commands."""

    server: MailServer
    encrypted = False

    def handle(self) -> None:
        self._say("220 here")
        while line := self.rfile.readline():
            verb = line.decode().split(maxsplit=1)[0].upper()
            if verb == "QUIT":
                return self._say("221 bye")
            known = {"EHLO": self._offer, "STARTTLS": self._encrypt, "AUTH": self._login, "DATA": self._take}
            known.get(verb, self._other)(line.decode().strip())
        return None

    def _offer(self, line: str) -> None:
        offers = ["here"] + (["STARTTLS"] if self.server.certificate and not self.encrypted else [])
        offers += ["AUTH PLAIN"] if self.encrypted else []
        self._say(*(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}")

    def _encrypt(self, line: str) -> None:
        assert self.server.certificate is not None
        self._say("220 go on")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.certificate)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.encrypted = True

    def _login(self, line: str) -> None:
        self.server.box.logins.append(base64.b64decode(line.split()[2]).decode())
        self._say("235 welcome")

    def _take(self, line: str) -> None:
        self._say("354 go on")
        lines = []
        while (text := self.rfile.readline().decode()) != ".\r\n":
            lines.append(text)
        self.server.box.mails.append("".join(lines))
        self.server.box.encrypted.append(self.encrypted)
        self._say("250 taken")

    def _other(self, line: str) -> None:
        refused = self.server.refuse and self.server.refuse in line
        self._say("550 unknown" if refused else "250 well")

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


@contextmanager
def mail_server(certificate: Path | None = None, refuse: str = "") -> Iterator[Mailbox]:
    """An SMTP server on loopback.

    Args:
        certificate: With its key; without one there is no STARTTLS.
        refuse: A recipient that it does not know.
    """
    server = MailServer(certificate, refuse)
    with _serving(server):
        yield server.box


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
