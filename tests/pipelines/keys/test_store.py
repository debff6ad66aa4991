"""Keys: kept as hashes, changed one at a time, never lost."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.errors import BadInput
from pipelines.keys.store import (
    DEFAULT,
    add_key,
    digest,
    ensure_default,
    keys_file,
    read_keys,
    revoke_key,
    rotate_key,
)
from pipelines.settings import Settings
from pipelines.system.credentials import credential


def test_a_key_is_kept_as_its_hash_in_a_file_of_ours_alone(settings: Settings) -> None:
    key = add_key(settings, "team-a", per_minute=60)
    (kept,) = read_keys(settings)
    assert (kept.name, kept.sha256, kept.per_minute, kept.burst) == ("team-a", digest(key), 60, 6)
    assert keys_file(settings).stat().st_mode & 0o777 == 0o600
    assert keys_file(settings).parent.stat().st_mode & 0o077 == 0
    assert not [path for path in settings.home.rglob("*") if path.is_file() and key in path.read_text()]


def test_keys_are_long_and_never_the_same(settings: Settings) -> None:
    keys = {add_key(settings, f"k{number}") for number in range(20)}
    assert len(keys) == 20
    assert min(len(key) for key in keys) >= 43 + len("vlmops-")  # 256 bits


def test_a_revoked_name_may_be_given_again_and_a_living_one_not(settings: Settings) -> None:
    add_key(settings, "team-a")
    with pytest.raises(BadInput, match="there is a key team-a; `vlmops keys revoke team-a` first"):
        add_key(settings, "team-a")
    revoke_key(settings, "team-a")
    assert [key.standing(datetime.now(UTC)) for key in read_keys(settings)] == ["revoked"]
    add_key(settings, "team-a")
    assert [key.standing(datetime.now(UTC)) for key in read_keys(settings)] == ["revoked", "good"]
    revoke_key(settings, "team-a")
    assert {key.standing(datetime.now(UTC)) for key in read_keys(settings)} == {"revoked"}


def test_who_is_not_there_cannot_be_revoked(settings: Settings) -> None:
    add_key(settings, "team-a")
    with pytest.raises(BadInput, match="no key team-b that was not revoked; there are: team-a"):
        revoke_key(settings, "team-b")


@pytest.mark.parametrize("name", ["", "Team", "a b", "../a", "a\n", "x" * 64])
def test_a_name_is_fit_for_a_metric(settings: Settings, name: str) -> None:
    with pytest.raises(BadInput, match="can be made"):
        add_key(settings, name)
    assert read_keys(settings) == ()


def test_limits_are_above_zero(settings: Settings) -> None:
    for limits in ({"per_minute": 0}, {"burst": 0}):
        with pytest.raises(BadInput, match="greater than or equal to 1"):
            add_key(settings, "team-a", **limits)


def test_a_key_ends_on_its_day(settings: Settings) -> None:
    add_key(settings, "guest", days=2)
    (key,) = read_keys(settings)
    assert key.standing(key.created + timedelta(days=1.9)) == "good"
    assert key.standing(key.created + timedelta(days=2)) == "expired"


def test_the_default_key_is_that_of_this_machine_s_commands_and_stays_revoked(settings: Settings) -> None:
    ensure_default(settings)
    ensure_default(settings)
    (key,) = read_keys(settings)
    assert (key.name, key.sha256, key.per_minute) == (DEFAULT, digest(credential(settings.state, "front_key")), None)
    revoke_key(settings, DEFAULT)
    ensure_default(settings)
    assert [key.standing(datetime.now(UTC)) for key in read_keys(settings)] == ["revoked"]


def test_a_rotated_key_keeps_its_name_and_limits_and_the_old_one_stays_revoked(settings: Settings) -> None:
    old = add_key(settings, "team-a", per_minute=30, burst=7, days=2)
    new = rotate_key(settings, "team-a")
    before, now = read_keys(settings)
    assert (before.sha256, before.standing(datetime.now(UTC))) == (digest(old), "revoked")
    assert (now.sha256, now.standing(datetime.now(UTC))) == (digest(new), "good")
    assert (now.name, now.per_minute, now.burst, now.expires) == ("team-a", 30, 7, before.expires)
    revoke_key(settings, "team-a")
    with pytest.raises(BadInput, match="no key team-a that was not revoked; there are: none"):
        rotate_key(settings, "team-a")


@pytest.mark.parametrize("revoked", [True, False])
def test_a_default_key_that_leaked_is_rotated_and_never_comes_back(settings: Settings, revoked: bool) -> None:
    ensure_default(settings)
    leaked = credential(settings.state, "front_key")
    if revoked:
        revoke_key(settings, DEFAULT)
    with pytest.raises(BadInput, match="`vlmops keys rotate default`"):
        add_key(settings, DEFAULT)
    rotate_key(settings, DEFAULT)
    ensure_default(settings)  # the next start of the front
    kept = {key.sha256: key for key in read_keys(settings)}
    now = credential(settings.state, "front_key")
    assert now != leaked
    assert kept[digest(leaked)].standing(datetime.now(UTC)) == "revoked"
    assert (kept[digest(now)].standing(datetime.now(UTC)), kept[digest(now)].per_minute) == ("good", None)
    (settings.state / "secrets" / "front_key").write_text(leaked)  # as from an old backup
    ensure_default(settings)
    assert {key.sha256: key for key in read_keys(settings)} == kept


def test_the_default_key_follows_its_credential(settings: Settings) -> None:
    ensure_default(settings)
    add_key(settings, "team-a")
    (settings.state / "secrets" / "front_key").unlink()
    ensure_default(settings)
    kept = {key.name: key.sha256 for key in read_keys(settings)}
    assert set(kept) == {DEFAULT, "team-a"}
    assert kept[DEFAULT] == digest(credential(settings.state, "front_key"))


def test_keys_that_are_added_at_the_same_time_are_all_kept(settings: Settings) -> None:
    code = "import sys; from pipelines.cli import main; sys.exit(main(['keys', 'add', sys.argv[1]]))"
    adding = [
        subprocess.Popen([sys.executable, "-c", code, f"k{number}"], stdout=subprocess.PIPE) for number in range(4)
    ]
    keys = [process.communicate()[0].decode().strip() for process in adding]
    assert {key.sha256 for key in read_keys(settings)} == {digest(key) for key in keys}


def test_a_broken_file_is_named(settings: Settings) -> None:
    add_key(settings, "team-a")
    keys_file(settings).write_text("[{]")
    with pytest.raises(BadInput, match=r"front-keys.json is not a list of keys"):
        add_key(settings, "team-b")
    assert keys_file(settings).read_text() == "[{]"
