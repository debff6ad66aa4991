"""HTTP with manners: tries again what another try may cure, waits as long as it is asked to, gives no secret away."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import SecretStr

from pipelines.errors import DownloadFailed, SourceRefused

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 5
"""In a row that bring nothing; one that brought bytes starts the count again."""

LONGEST_WAIT = 900.0
"""Seconds; a server that asks for more is not waited for."""

TRANSIENT = {408, 425, 429}
"""Statuses that a later request may not get, with all from 500."""


@dataclass(frozen=True)
class Address:
    """Where something is fetched from. Neither part is ever shown: one may be signed, the other hold a token."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class WaysOut:
    """What a person can do about a place's refusals."""

    no_access: str
    not_there: str


class Hiccup(Exception):
    """A failure that another try may cure."""

    def __init__(self, why: str, wait_seconds: float | None = None) -> None:
        """Say why, and how long the server asks to be left alone."""
        super().__init__(why)
        self.wait_seconds = wait_seconds


class Stopped(Exception):
    """Another thread's work has failed, so this one's is not wanted any more."""


class Connection:
    """Requests to one place, from any number of threads."""

    def __init__(self, ways_out: WaysOut, pause: Callable[[float], object] | None = None) -> None:
        """Open nothing yet.

        Args:
            ways_out: For error messages.
            pause: Waits so many seconds; the default ends early when the connection is stopped.
        """
        self._ways_out = ways_out
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        # httpx logs whole addresses, and a presigned one is a secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        # Ranges count the bytes of the file, so nothing may be compressed on the way.
        headers = {"User-Agent": "vlmops", "Accept-Encoding": "identity"}
        self._http = httpx.Client(headers=headers, follow_redirects=True, timeout=httpx.Timeout(60, connect=30))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def stop(self) -> None:
        """Let every thread that waits or reads come to its end."""
        self._stopped.set()

    def require_running(self) -> None:
        """Raise Stopped after a stop."""
        if self._stopped.is_set():
            raise Stopped

    def get(self, what: str, address: Address) -> bytes:
        """A small answer, tried for until it comes.

        Args:
            what: Names it in errors.
            address: Of the answer.
        """

        def attempt() -> bytes:
            with self.open(what, address) as response:
                return response.read()

        return self.persist(what, attempt)

    @contextmanager
    def open(self, what: str, address: Address, *, offset: int = 0) -> Iterator[httpx.Response]:
        """One try at a file, from a byte on; tokens stay with the host that they are meant for.

        Raises:
            Hiccup: Try again.
            SourceRefused: There is no access, or nothing there.
        """
        headers = {**address.headers, **({"Range": f"bytes={offset}-"} if offset else {})}
        try:
            with self._http.stream("GET", address.url, headers=headers) as response:
                self._refuse(what, response)
                yield response
        except httpx.HTTPError as error:
            host = httpx.URL(address.url).host
            raise Hiccup(f"{type(error).__name__} at {host}") from None  # its text may quote the address or a header

    def persist(self, what: str, attempt: Callable[[], T], at_hand: Callable[[], int] = lambda: 0) -> T:
        """Try until it works.

        Args:
            what: Names it in errors.
            attempt: One try; raises Hiccup where another is worth it.
            at_hand: The bytes there are already: more of them than ever start the count of tries again.

        Raises:
            DownloadFailed: Too many tries brought nothing.
        """
        tries, most = 0, at_hand()
        while True:
            try:
                return attempt()
            except Hiccup as hiccup:
                tries, most = (0 if at_hand() > most else tries) + 1, max(most, at_hand())
                seconds = min(2.0**tries, 60.0) if hiccup.wait_seconds is None else hiccup.wait_seconds
                if tries == ATTEMPTS or seconds > LONGEST_WAIT:
                    raise DownloadFailed(
                        f"{what}: {hiccup}, try {tries} that brought nothing; run it again in {seconds:.0f} s "
                        f"or later, it goes on from what is there"
                    ) from None
                log.warning("%s: %s; once more in %.0f s", what, hiccup, seconds)
            self._pause(seconds)
            self.require_running()

    def _refuse(self, what: str, response: httpx.Response) -> None:
        status = response.status_code
        if status in {200, 206}:
            return
        if status in TRANSIENT or status >= 500:
            raise Hiccup(f"status {status}", wait_asked(response.headers))
        if status in {401, 403}:
            raise SourceRefused(f"{what}: no access (status {status}); {self._ways_out.no_access}")
        if status in {404, 410}:
            raise SourceRefused(f"{what}: not there (status {status}); {self._ways_out.not_there}")
        raise DownloadFailed(f"{what}: unexpected status {status}; {self._ways_out.no_access}")


def sendable(token: SecretStr, variable: str) -> str:
    """The text of a token, as it goes into a header.

    Raises:
        SourceRefused: It holds what no header may.
    """
    text = token.get_secret_value().strip()
    if not re.fullmatch(r"[!-~]+", text):
        raise SourceRefused(f"{variable} holds white space or characters outside ASCII; set it to the token alone")
    return text


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `Retry-After`, else the draft `RateLimit` that the hub sends."""
    after = headers.get("Retry-After", "")
    if after.isdecimal():
        return float(after)
    if after:
        try:
            return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):  # no date, or one without a zone
            return None
    reset = re.search(r";\s*r=0;\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None
