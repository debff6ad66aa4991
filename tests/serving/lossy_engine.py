"""The engine double behind a proxy that loses 3 % of the questions: each 33rd connection is closed without an answer.

Takes the double's arguments and stands in its place; the double itself knows nothing of the losses.
"""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

EVERY = 33

sys.path.insert(0, str(Path(__file__).parent))
from engine_double import Server  # noqa: E402


class Proxy(BaseHTTPRequestHandler):
    """Forwards, or loses."""

    protocol_version = "HTTP/1.1"
    port: ClassVar[int]
    numbers: ClassVar = itertools.count(1)

    def do_GET(self) -> None:
        """Nothing is lost."""
        self._forward(None)

    def do_POST(self) -> None:
        """A question."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if next(self.numbers) % EVERY == 0:
            self.close_connection = True
            return
        self._forward(body)

    def _forward(self, body: bytes | None) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        behind.request(self.command, self.path, body, {"Content-Type": "application/json"})
        response = behind.getresponse()
        content = response.read()
        self.send_response(response.status)
        self.send_header("Content-Type", response.headers["Content-Type"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Say nothing."""


def main() -> None:
    """Start the double on another port, and serve until stopped."""
    arguments = sys.argv[1:]
    place = arguments.index("--port") + 1
    port = int(arguments[place])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        Proxy.port = free.getsockname()[1]
    arguments[place] = str(Proxy.port)
    double = subprocess.Popen([sys.executable, str(Path(__file__).with_name("engine_double.py")), *arguments])
    signal.signal(signal.SIGTERM, lambda *_: (double.terminate(), double.wait(), os._exit(0)))
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", Proxy.port)):
            break
        time.sleep(0.05)
    Server(("127.0.0.1", port), Proxy).serve_forever()


if __name__ == "__main__":
    main()
