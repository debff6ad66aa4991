"""The keys of the front: named, kept as hashes, each with a rate of its own and an end if it has one.

    state/secrets/front-keys.json   mode 600: names, hashes, limits, dates

A key is 256 random bits. Its plain SHA-256 is enough: slow and salted hashes are for what people think up, which can be
guessed; a key cannot, and is checked on every request.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipelines.errors import BadInput
from pipelines.settings import Settings
from pipelines.system.credentials import credential, write_credential
from pipelines.system.durable import write_bytes

DEFAULT = "default"
"""The key of this machine's own commands; the only one that is also kept in the clear, for them to send."""

CREDENTIAL = "front_key"
"""Where it is kept so."""

PER_MINUTE = 600
"""Of a key for which nothing else is said."""

PREFIX = "vlmops-"
"""Lets scanners of logs and repositories know a key when they see one."""

Standing = Literal["good", "expired", "revoked"]


class Key(BaseModel):
    """A key, by its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Of whom it was given to; in metrics and in the access log."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    per_minute: int | None = Field(ge=1)
    """Requests a minute that it may go on with. None: no limit."""

    burst: int = Field(ge=1)
    """Requests at once, after a pause."""

    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def standing(self, now: datetime) -> Standing:
        """Whether it still opens."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "good"


_KEYS = TypeAdapter(tuple[Key, ...])


def keys_file(settings: Settings) -> Path:
    """Where the keys are."""
    return settings.state / "secrets" / "front-keys.json"


def parse_keys(content: bytes) -> tuple[Key, ...]:
    """The keys in a file's content.

    Raises:
        ValueError: It is not what we wrote.
    """
    return _KEYS.validate_json(content)


def read_keys(settings: Settings) -> tuple[Key, ...]:
    """Every key, revoked ones too.

    Raises:
        BadInput: The file is not what we wrote.
    """
    path = keys_file(settings)
    if not path.is_file():
        return ()
    try:
        return parse_keys(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{path} is not a list of keys: {error}; restore it, or delete it and add keys anew") from None


def add_key(
    settings: Settings,
    name: str,
    *,
    per_minute: int | None = PER_MINUTE,
    burst: int | None = None,
    days: float | None = None,
) -> str:
    """Make a key and return it; it is nowhere to be read afterwards.

    Args:
        name: May be that of a revoked key, which stays revoked.
        per_minute: Requests a minute. None: no limit.
        burst: Requests at once; a tenth of the minute's unless told.
        days: Until it expires. None: never.

    Raises:
        BadInput: The name is taken or no name, or a limit is no number above 0.
    """
    if name == DEFAULT:
        raise BadInput(f"{DEFAULT} is the key of this machine's own commands; `vlmops keys rotate {DEFAULT}` renews it")
    key = _random()
    with _changing(settings) as keys:
        if any(other.name == name and other.revoked is None for other in keys):
            raise BadInput(f"there is a key {name}; `vlmops keys revoke {name}` first, or choose another name")
        keys.append(_make(name, digest(key), per_minute, burst, days))
    return key


def rotate_key(settings: Settings, name: str) -> str:
    """Revoke a key and return another one of that name, limits and end, in one change.

    Args:
        name: `default` may be one that was revoked, and its new key is put where this machine's commands find it.

    Raises:
        BadInput: There is none of that name.
    """
    if name == DEFAULT:
        ensure_default(settings)
    key = _random()
    with _changing(settings) as keys:
        at = max(at for at, old in enumerate(keys) if old.name == name) if name == DEFAULT else _living(keys, name)
        old, now = keys[at], datetime.now(UTC)
        if name == DEFAULT:  # before its hash: killed between the two, the next start of the front lets it in
            write_credential(settings.state, CREDENTIAL, key)
        keys[at] = old.model_copy(update={"revoked": old.revoked or now})
        keys.append(old.model_copy(update={"sha256": digest(key), "created": now, "revoked": None}))
    return key


def revoke_key(settings: Settings, name: str) -> None:
    """Let a key open nothing any more, from the next request on.

    Raises:
        BadInput: There is none of that name.
    """
    with _changing(settings) as keys:
        at = _living(keys, name)
        keys[at] = keys[at].model_copy(update={"revoked": datetime.now(UTC)})


def ensure_default(settings: Settings) -> None:
    """Let in the key that this machine's own commands send, unless it was revoked: only `rotate_key` ends that."""
    expected = digest(credential(settings.state, CREDENTIAL))
    with _changing(settings) as keys:
        known = [key for key in keys if key.name == DEFAULT]
        living = [key for key in known if key.revoked is None]
        revoked = bool(known) and not living
        if not revoked and all(key.sha256 != expected for key in known):
            keys[:] = [*(key for key in keys if key not in living), _make(DEFAULT, expected, None, None, None)]


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _random() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _living(keys: Sequence[Key], name: str) -> int:
    """Where the key of a name is that was not revoked."""
    at = next((at for at, key in enumerate(keys) if key.name == name and key.revoked is None), None)
    if at is None:
        known = ", ".join(key.name for key in keys if key.revoked is None) or "none"
        raise BadInput(f"there is no key {name} that was not revoked; there are: {known}")
    return at


def _make(name: str, sha256: str, per_minute: int | None, burst: int | None, days: float | None) -> Key:
    now = datetime.now(UTC)
    try:
        return Key(
            name=name,
            sha256=sha256,
            per_minute=per_minute,
            burst=max(1, (per_minute or PER_MINUTE) // 10) if burst is None else burst,
            created=now,
            expires=None if days is None else now + timedelta(days=days),
        )
    except ValueError as error:
        raise BadInput(f"no key {name!r} can be made: {error}") from None


@contextmanager
def _changing(settings: Settings) -> Iterator[list[Key]]:
    """The keys, to be changed in place; written when the block ends well. One at a time."""
    path = keys_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(settings))
        yield keys
        write_bytes(path, _KEYS.dump_json(tuple(keys), indent=1), mode=0o600)
