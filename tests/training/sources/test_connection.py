"""How long a server asks to be left alone, and when a try is one too many."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from pipelines.errors import DownloadFailed
from training.sources.connection import ATTEMPTS, Address, Connection, Hiccup, Stopped, WaysOut, wait_asked

NOWHERE = Address("http://127.0.0.1:9/path?Signature=secret", {"Authorization": "Bearer secret"})
WAYS_OUT = WaysOut("ask", "look")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=9;t=55'}, None),
        ({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}, 7.0),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(headers: Mapping[str, str], seconds: float | None) -> None:
    assert wait_asked(httpx.Headers(headers)) == seconds


def test_a_date_to_come_is_a_wait() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert wait_asked({"Retry-After": later}) == pytest.approx(100, abs=5)


def test_a_host_that_is_not_there_is_tried_and_named_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[float] = []
    with Connection(WAYS_OUT, waits.append) as connection, pytest.raises(DownloadFailed) as failed:
        connection.get("the file", NOWHERE)
    assert str(failed.value).startswith("the file: ConnectError at 127.0.0.1, try 5 that brought nothing")
    assert len(waits) == ATTEMPTS - 1
    assert "secret" not in caplog.text + str(failed.value) + repr(NOWHERE)


def test_whoever_waits_ends_when_stopped() -> None:
    with Connection(WAYS_OUT) as connection:

        def attempt() -> None:
            connection.stop()
            raise Hiccup("busy", 600)

        with pytest.raises(Stopped):
            connection.persist("the file", attempt)
