"""A POST of JSON that tells nobody its address: for chat webhooks the address is the secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from pipelines.alerts.sinks.sink import SinkFailed

LONGEST_REPLY = 65_536
"""Bytes of an answer that are read."""


def post(
    address: str,
    body: bytes,
    seconds: float,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Send a body and return the start of the answer. Redirects are not followed: they would carry secrets elsewhere.

    Raises:
        SinkFailed: Nothing answers, or with another status than 2xx; the message does not hold the address.
    """
    try:
        with _unlogged(), httpx.Client(timeout=seconds) as client:
            url = httpx.URL(address).copy_merge_params(dict(params or {}))
            sent = {"Content-Type": "application/json", **(headers or {})}
            with client.stream("POST", url, content=body, headers=sent) as reply:
                content = _start_of(reply)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise SinkFailed(f"{type(error).__name__}: {error}") from None
    if not reply.is_success:
        raise SinkFailed(f"answered {reply.status_code}: {content[:200].decode(errors='replace')}")
    return content


def _start_of(reply: httpx.Response) -> bytes:
    content = b""
    for chunk in reply.iter_bytes():
        content += chunk
        if len(content) >= LONGEST_REPLY:
            break
    return content[:LONGEST_REPLY]


@contextmanager
def _unlogged() -> Iterator[None]:
    """Nothing of this thread's requests in httpx's log: it writes whole addresses at level INFO."""
    logger = logging.getLogger("httpx")
    silent = _Silent()
    logger.addFilter(silent)
    try:
        yield
    finally:
        logger.removeFilter(silent)


class _Silent(logging.Filter):
    """Keeps back what one thread logs."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = logging.LogRecord("", 0, "", 0, "", None, None).thread

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread
