"""The watch window: a version that has been released is looked at for a while before it counts as what serves."""

from __future__ import annotations

import logging
import time

from pipelines.errors import EngineBusy, EngineFailed, Unreachable
from pipelines.settings import Settings
from serving.client import Metrics, metrics
from serving.engine import alive
from serving.probe import probe
from serving.served import Served, running

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
MISSES = 3
"""Looks in a row without an answer before a busy engine counts as a hanging one."""


def watch(settings: Settings, version: Served) -> None:
    """Watch what was just released, and probe it once more at the end, under whatever traffic there is.

    Raises:
        EngineFailed: Its processes ended or were replaced, it does not answer, it lost requests, or too few of the
            golden answers came again. That its queue stays full of clients is not held against it.
    """
    before = metrics(settings.engine_url)
    deadline = time.monotonic() + version.serving.watch_seconds
    misses = 0
    while time.monotonic() < deadline:
        if not any(map(alive, running(settings))):
            raise EngineFailed("its engine ended while it was watched")
        misses = 0 if _looks_well(settings, before) else misses + 1
        if misses == MISSES:
            raise EngineFailed(f"its engine did not answer {MISSES} times in a row while it was watched")
        time.sleep(min(LOOK_SECONDS, version.serving.watch_seconds))
    _probe(settings, version)


def _probe(settings: Settings, version: Served) -> None:
    try:
        probe(settings.engine_url, version.name, version.golden).require(version.serving.watch_match)
    except EngineBusy as busy:  # all else is well, and it was probed before it was released
        log.warning("%s; the watch ends without a second probe", busy)


def _looks_well(settings: Settings, before: Metrics) -> bool:
    try:
        now = metrics(settings.engine_url)
    except Unreachable:
        return False
    if now.started != before.started:
        raise EngineFailed("another engine took its place while it was watched")
    if lost := now.lost - before.lost:
        raise EngineFailed(f"it lost {lost} requests while it was watched: they ended in an abort or an error")
    return True
