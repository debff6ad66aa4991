"""Before an engine is changed: new requests wait at the front, and those that are under way end, until a deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from pipelines.errors import EngineFailed, Unreachable
from pipelines.settings import Settings
from serving import front
from serving.client import QUICK, healthy, metrics
from serving.engine import alive
from serving.promotion.deploy_log import Note
from serving.promotion.held import Held
from serving.served import Served, read_confirmed, running, serves_released

POLL_SECONDS = 0.1

SOON = 1.0
"""Seconds that an engine has at least to say what it does."""


@dataclass(frozen=True)
class Left:
    """Requests that have not ended. None: who would know does not say."""

    at_front: int | None
    """That the front handed to the engine, bodies that are only half sent included; 0 without a front."""

    in_engine: int | None
    """That the engine computes, or lets wait; those whose images it is still unpacking are not among them."""

    unfinished: bool = False
    """Whether the engine computed none of them in the second half of the wait: they have not come in whole."""

    @property
    def nothing(self) -> bool:
        """Whether all have ended."""
        return self.at_front == self.in_engine == 0

    def __str__(self) -> str:
        at_front, in_engine = ("unknown" if n is None else n for n in (self.at_front, self.in_engine))
        return f"requests under way: {at_front} at the front, {in_engine} in the engine"


def hold_and_drain(settings: Settings, held: Held, note: Note, seconds: float) -> Left:
    """Let new requests wait, and wait for those under way; return what is left of them at the deadline.

    The caller decides what becomes of these, and of the hold, also where this raises.
    """
    held.begin()
    note("hold", "")
    front.wait_noticed(settings)
    note("drain", "")
    began = idle_since = time.monotonic()
    while True:
        now = left(settings, began + seconds - time.monotonic())
        waited = time.monotonic() - began
        idle_since = idle_since if now.in_engine == 0 else time.monotonic()
        if now.nothing or waited >= seconds:
            return replace(now, unfinished=idle_since <= began + seconds / 2)
        time.sleep(POLL_SECONDS)


def left(settings: Settings, seconds: float = QUICK) -> Left:
    """What is under way now; nothing where no engine runs.

    Args:
        settings: Of this machine.
        seconds: For the engine to say so.
    """
    if not any(map(alive, running(settings))):
        return Left(0, 0)
    return Left(_at_front(settings), _in_engine(settings, min(max(seconds, SOON), QUICK)))


def why_cut(settings: Settings, target: Served, left: Left, *, cut: bool) -> str | None:
    """Why requests that have not ended need not keep a version away; None if they do.

    Args:
        settings: Of this machine.
        target: The version.
        left: What has not ended.
        cut: Whether they may be cut in any case.
    """
    confirmed = read_confirmed(settings)
    if left.unfinished and left.at_front is not None:
        return "the engine computes none of them, and their senders have not finished them"
    if not serves_released(settings):
        return "what runs was never released"
    if not healthy(settings.engine_url):
        return "the engine no longer answers"
    if confirmed is not None and target in (confirmed.now, confirmed.before):
        return f"v{target.version} is the way back"
    return "as serving.at_deadline says" if cut else None


def _at_front(settings: Settings) -> int | None:
    try:
        return front.in_flight(settings) or 0
    except EngineFailed:
        return None


def _in_engine(settings: Settings, seconds: float) -> int | None:
    try:
        return metrics(settings.engine_url, seconds).in_flight
    except (Unreachable, EngineFailed):
        return None
