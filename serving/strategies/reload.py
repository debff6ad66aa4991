"""The strategy `reload`: the running engine reads other weights in place.

vLLM answers 200 whether or not the weights that it then computes with are the new ones, so that three things guard it:
versions that differ in more than the values of their weights are refused; a golden question that the old version
answers otherwise must be answered as the new one does; and the engine's log bears the name of a version only while that
version is proven to be in it. A promoter that is killed half-way leaves a log of no version, whose engine is replaced.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from pipelines.errors import EngineFailed, Unreachable
from pipelines.settings import Settings
from serving.client import command
from serving.engine import alive
from serving.probe import ProbeResult
from serving.promotion.deploy_log import Note
from serving.served import Served, engines, running
from serving.strategies.base import prove

CACHES = ("prefix", "mm", "encoder")
"""What vLLM keeps of earlier requests, computed by the weights that it had then."""


class Reload:
    """The engine stays; its weights, and with them all that it keeps of earlier requests, go."""

    name = "reload"

    def __init__(self, settings: Settings, note: Note, old: Served, telling: Set[str]) -> None:
        """Between two versions.

        Args:
            old: What runs.
            telling: Golden questions of the new version that `old` answers otherwise.
        """
        self._settings = settings
        self._note = note
        self._old = old
        self._telling = telling
        self._silent = False
        """Whether a call was not answered: whenever it wakes up, it may still do what it was told."""

    def swap(self, new: Served) -> ProbeResult:
        """Put the weights of `new` into the engine that runs.

        Raises:
            EngineFailed: It ended, did not do as told, or does not answer as `new`.
            Unreachable: It did not answer in time.
        """
        self._read(new)
        probed = prove(self._settings, self._note, new)
        probed.require(new.serving.probe_match, among=self._telling)
        self._named_for(new)
        return probed

    def undo(self, old: Served) -> ProbeResult:
        """Put the weights of `old` back.

        Raises:
            EngineFailed: As above, or `old` is not what the engine had.
            Unreachable: It did not answer in time, now or before.
        """
        if old.log(self._settings) != self._old.log(self._settings):
            raise EngineFailed(f"the engine had v{self._old.version} and not v{old.version}")
        if self._silent:
            raise EngineFailed("an engine that left a call unanswered may still carry it out")
        self._read(old)
        probed = prove(self._settings, self._note, old)
        self._named_for(old)
        return probed

    def _read(self, wanted: Served) -> None:
        """One call after the other; the engine is idle, and what comes meanwhile would wait in it."""
        self._note("reload", f"v{self._old.version} in memory, reads {wanted.model}")
        self._rename(engines(self._settings) / "between-versions.log")
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(wanted.model)}}
        self._tell("/pause?mode=wait", wanted)
        self._tell("/collective_rpc", wanted, body)
        for cache in CACHES:
            self._tell(f"/reset_{cache}_cache", wanted)
        self._tell("/resume", wanted)

    def _tell(self, path: str, wanted: Served, body: object = None) -> None:
        try:
            command(self._settings.engine_url, path, wanted.serving.reload_seconds, body)
        except Unreachable:
            self._silent = True
            raise

    def _named_for(self, version: Served) -> None:
        [pid] = running(self._settings)
        if not alive(pid):
            raise EngineFailed(f"the engine ended as it had v{version.version}")
        self._rename(version.log(self._settings))

    def _rename(self, name: Path) -> None:
        """Processes write on to a renamed file; what an earlier engine left under the name is kept beside it."""
        if len(running(self._settings)) != 1:
            raise EngineFailed("the engine that was to read other weights does not run")
        [log] = running(self._settings).values()
        if log == name:
            return
        if name.exists():
            name.replace(name.with_suffix(".old"))
        log.replace(name)
