"""The golden probe of what serves, as the monitor asks it: now and then, and never of what a promotion is changing."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from pipelines.errors import EngineBusy, EngineFailed, Unreachable
from pipelines.monitoring.snapshot import ProbeFacts
from pipelines.settings import Settings
from serving import service
from serving.probe import ProbeResult, probe
from serving.served import Served, read_confirmed, read_served


def probed(settings: Settings, last: ProbeFacts | None, now: datetime, every: timedelta) -> ProbeFacts | None:
    """The last probe; a new one where it is time and a version serves.

    One that failed is repeated at the next look, so that it is not taken for a fault for long if it was none. While a
    version is watched after its release, the promoter asks: it counts what is lost, and would count ours.
    """
    served, confirmed = read_served(settings), read_confirmed(settings)
    if served is None or confirmed is None or confirmed.now != served:
        return last
    if service.status(settings)["state"] not in {"serving", "unreachable"}:  # the engine answers
        return last
    if last is not None and last.passed and last.version == served.version and timedelta(0) <= now - last.time < every:
        return last  # one to come is of a clock that was put back
    try:
        facts = _ask(settings, served, last, now)
    except EngineBusy:
        return last  # `GoldenProbeStale` tells if that goes on
    meanwhile = read_served(settings) != served or service.status(settings)["holding"]
    return last if meanwhile else facts  # a promotion came in between: what was asked is not what serves


def _ask(settings: Settings, served: Served, last: ProbeFacts | None, now: datetime) -> ProbeFacts:
    began = time.monotonic()
    result, why = None, ""
    try:
        result = probe(settings.engine_url, served.name, served.golden)
        result.require(served.serving.watch_match)
    except EngineBusy:
        raise
    except (EngineFailed, Unreachable) as error:
        why = str(error)
    return ProbeFacts(
        time=now,
        version=served.version,
        asked=0 if result is None else result.asked,
        matched=0 if result is None else result.matched,
        passed=not why,
        seconds=time.monotonic() - began,
        why=_without_text(why, result),
        last_passed=now if not why else None if last is None else last.last_passed,
    )


def _without_text(why: str, result: ProbeResult | None) -> str:
    """The reason by items alone: golden questions may be of people's data, and what is kept here goes far."""
    if result is None or not why:
        return why
    return f"other answers to {', '.join(sorted(result.failures)[:5])}"
