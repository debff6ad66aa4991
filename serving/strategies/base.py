"""What every strategy can do."""

from __future__ import annotations

from typing import Protocol

from pipelines.settings import Settings
from serving.probe import ProbeResult, probe
from serving.promotion.deploy_log import Note
from serving.served import Served


class Strategy(Protocol):
    """A way from one version to another. Both calls raise a VlmopsError when the version is not up or not proven."""

    name: str

    def swap(self, new: Served) -> ProbeResult:
        """Bring the new version up, and prove that it is the one."""

    def undo(self, old: Served) -> ProbeResult:
        """Bring the old version back, and prove that it is the one."""


def prove(settings: Settings, note: Note, wanted: Served) -> ProbeResult:
    """Probe what the engine answers now.

    Raises:
        EngineFailed: It is not what was measured.
    """
    note("probe", wanted.name)
    probed = probe(settings.engine_url, wanted.name, wanted.golden)
    probed.require(wanted.serving.probe_match)
    return probed
