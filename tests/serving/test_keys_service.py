"""What the keys service decides: who, how often, and what it tells and counts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from pipelines.keys.store import add_key, keys_file, revoke_key
from pipelines.settings import Settings
from serving.keys_service import Bucket, Doorkeeper, Verdict


@pytest.fixture
def keeper(settings: Settings) -> Doorkeeper:
    return Doorkeeper(keys_file(settings))


def ask(keeper: Doorkeeper, *headers: str) -> Verdict:
    return keeper.decide([header.encode() for header in headers])


def test_a_key_opens_and_nothing_else_does(settings: Settings, keeper: Doorkeeper) -> None:
    key, other = add_key(settings, "team-a"), add_key(settings, "team-b")
    assert ask(keeper, f"Bearer {key}") == Verdict(200, headers={"Vlmops-Key": "team-a"})
    assert ask(keeper, f"bearer {other}").headers == {"Vlmops-Key": "team-b"}
    refused = ("", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer {key[:-1]}", f"Bearer {key}x", f"Bearer {key} x")
    assert {ask(keeper, header).status for header in refused} == {401}
    assert ask(keeper).status == 401
    assert ask(keeper, f"Bearer {key}", f"Bearer {key}").status == 401  # which of two would count is a riddle


def test_a_change_holds_from_the_next_request_on(settings: Settings, keeper: Doorkeeper) -> None:
    key = add_key(settings, "team-a")
    assert ask(keeper, f"Bearer {key}").status == 200
    revoke_key(settings, "team-a")
    assert ask(keeper, f"Bearer {key}").status == 401
    assert ask(keeper, f"Bearer {add_key(settings, 'team-a')}").status == 200


def test_an_expired_key_is_told_so(settings: Settings, keeper: Doorkeeper) -> None:
    verdict = ask(keeper, f"Bearer {add_key(settings, 'guest', days=-1)}")
    assert (verdict.status, verdict.message) == (401, "this key has expired")


def test_each_key_has_a_rate_of_its_own(settings: Settings, keeper: Doorkeeper) -> None:
    slow, other = add_key(settings, "slow", per_minute=6, burst=2), add_key(settings, "other", per_minute=6, burst=2)
    seen = [ask(keeper, f"Bearer {slow}") for _ in range(3)]
    assert [verdict.status for verdict in seen] == [200, 200, 429]
    assert 9 <= int(seen[2].headers["Retry-After"]) <= 10
    assert b"more than 6 requests a minute" in seen[2].body
    assert ask(keeper, f"Bearer {other}").status == 200


@pytest.mark.parametrize("content", [None, b"", b"[{]", b'[{"name": "a"}]'])
def test_while_keys_cannot_be_read_nobody_gets_in(
    settings: Settings, keeper: Doorkeeper, content: bytes | None
) -> None:
    key = add_key(settings, "team-a")
    assert ask(keeper, f"Bearer {key}").status == 200
    keys_file(settings).unlink()
    if content is not None:
        keys_file(settings).write_bytes(content)
    verdict = ask(keeper, f"Bearer {key}")
    assert (verdict.status, verdict.headers["Retry-After"]) == (503, "5")


def test_requests_are_counted_by_name_and_no_key_is_shown(settings: Settings, keeper: Doorkeeper) -> None:
    key = add_key(settings, "team-a", per_minute=6, burst=1)
    for header in (f"Bearer {key}", f"Bearer {key}", "Bearer wrong"):
        ask(keeper, header)
    shown = generate_latest(keeper.registry).decode()
    assert 'vlmops_front_requests_total{key="team-a",outcome="admitted"} 1.0' in shown
    assert 'vlmops_front_requests_total{key="team-a",outcome="limited"} 1.0' in shown
    assert "vlmops_front_unknown_keys_total 1.0" in shown
    assert not re.search("wrong|vlmops-[A-Za-z0-9_-]{20}", shown)


@given(
    per_minute=st.integers(1, 6000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 30), max_size=60),
)
def test_no_more_is_let_in_than_burst_and_rate_allow(per_minute: int, burst: int, pauses: list[float]) -> None:
    bucket, now, let_in = Bucket(per_minute / 60, burst, burst, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        wait = bucket.wait(now)
        let_in += wait == 0
        assert 0 <= wait <= 60 / per_minute + 1e-9
    assert let_in <= burst + now * per_minute / 60 + 1e-6


@given(per_minute=st.integers(1, 6000), burst=st.integers(1, 20))
def test_who_waits_as_long_as_told_is_let_in(per_minute: int, burst: int) -> None:
    bucket, now = Bucket(per_minute / 60, burst, burst, 0.0), 0.0
    for _ in range(2 * burst + 2):
        now += (wait := bucket.wait(now))
        if wait:
            assert bucket.wait(now + 1e-6) == 0
