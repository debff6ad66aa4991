"""What every strategy can do."""

from __future__ import annotations

import logging
from typing import Protocol

from pipelines.errors import EngineFailed, Unreachable
from pipelines.settings import Settings
from serving.engine import Engine
from serving.probe import ProbeResult, probe
from serving.promotion.deploy_log import Note
from serving.served import Served, running, serves_released

log = logging.getLogger(__name__)


class Strategy(Protocol):
    """A way from one version to another. Both calls raise a VlmopsError when the version is not up or not proven."""

    name: str

    def swap(self, new: Served) -> ProbeResult:
        """Bring the new version up, and prove that it is the one."""

    def undo(self, old: Served) -> ProbeResult:
        """Bring the old version back, and prove that it is the one."""


def answers(settings: Settings, version: Served, seconds: float) -> bool:
    """Whether the engine of a version that runs answers, or does so within the seconds; says why it does not."""
    try:
        for pid, its_log in running(settings).items():  # one, or none any more
            Engine(pid, settings.engine_url, its_log, version.names).wait_ready(seconds)
    except (EngineFailed, Unreachable) as error:
        log.warning("the engine of v%d is of no use: %s", version.version, error)
        return False
    return serves_released(settings)


def prove(settings: Settings, note: Note, wanted: Served, share: float | None = None) -> ProbeResult:
    """Probe what the engine answers now.

    Args:
        settings: Of this machine.
        note: Writes the deploy log.
        wanted: What it must answer as.
        share: Of the golden answers that must come again. None: as from an idle engine, `serving.probe_match`.

    Raises:
        EngineFailed: It is not what was measured.
    """
    note("probe", wanted.name)
    probed = probe(settings.engine_url, wanted.name, wanted.golden)
    probed.require(wanted.serving.probe_match if share is None else share)
    return probed
