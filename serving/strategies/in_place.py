"""The engine stays, and something in it goes: what `reload` and `adapter` have in common.

vLLM answers 200 whether or not it then computes with what it was given, so that three things guard it: versions that
differ in more than that are refused; a golden question that the old version answers otherwise must be answered as the
new one does; and the engine's log bears the name of a version only while that version is proven to be in it. A promoter
that is killed half-way leaves a log of no version, whose engine is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import EngineFailed
from pipelines.settings import Settings
from serving.client import command
from serving.engine import alive
from serving.probe import ProbeResult
from serving.promotion.deploy_log import Note
from serving.served import Served, engines, running
from serving.strategies.base import prove

CACHES = ("prefix", "mm", "encoder")
"""What vLLM keeps of earlier requests, computed by the weights that it had then. It tells versions apart by the name
alone, or by nothing."""


@dataclass(frozen=True)
class Call:
    """One of an engine's own endpoints, and what it is told."""

    path: str
    body: object


@dataclass(frozen=True)
class Change:
    """What goes and what comes."""

    name: Literal["reload", "adapter"]
    objections: Callable[[Served, Served], Iterator[str]]
    """Why an engine of one version cannot become one of the other."""

    calls: Callable[[Settings, Served], Iterator[Call]]
    """Puts a version into an idle engine; each is asked for when those before it are answered."""


class InPlace:
    """A strategy that keeps the engine."""

    def __init__(self, settings: Settings, note: Note, change: Change, old: Served, telling: Set[str]) -> None:
        """Between two versions.

        Args:
            settings: Of this machine.
            note: Writes the deploy log.
            change: How.
            old: What runs.
            telling: Golden questions of the new version that `old` answers otherwise.
        """
        self.name: str = change.name
        self._settings = settings
        self._note = note
        self._change = change
        self._old = old
        self._telling = telling
        self._silent = False
        """Whether a call was not answered: whenever it wakes up, it may still do what it was told."""

    def swap(self, new: Served) -> ProbeResult:
        """Put `new` into the engine that runs.

        Raises:
            EngineFailed: It ended, did not do as told, or does not answer as `new`.
            Unreachable: It did not answer in time.
        """
        self._put(new)
        probed = prove(self._settings, self._note, new)
        probed.require(new.serving.probe_match, among=self._telling)
        self._named_for(new)
        return probed

    def undo(self, old: Served) -> ProbeResult:
        """Put `old` back.

        Raises:
            EngineFailed: As above, or `old` is not what the engine had.
            Unreachable: It did not answer in time, now or before.
        """
        if old.log(self._settings) != self._old.log(self._settings):
            raise EngineFailed(f"the engine had v{self._old.version} and not v{old.version}")
        if self._silent:
            raise EngineFailed("an engine that left a call unanswered may still carry it out")
        self._put(old)
        probed = prove(self._settings, self._note, old)
        self._named_for(old)
        return probed

    def _put(self, wanted: Served) -> None:
        """One call after the other; the engine is idle, and what comes meanwhile would wait in it."""
        self._note(self._change.name, f"v{self._old.version} in memory, takes v{wanted.version}")
        self._rename(engines(self._settings) / "between-versions.log")
        self._tell(Call("/pause?mode=wait", None), wanted)
        for call in self._change.calls(self._settings, wanted):
            self._tell(call, wanted)
        for cache in CACHES:
            self._tell(Call(f"/reset_{cache}_cache", None), wanted)
        self._tell(Call("/resume", None), wanted)

    def _tell(self, call: Call, wanted: Served) -> None:
        try:
            command(self._settings.engine_url, call.path, wanted.serving.reload_seconds, call.body)
        except EngineFailed:
            raise  # it answered
        except BaseException:
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
            raise EngineFailed("the engine that was to take another version does not run")
        [log] = running(self._settings).values()
        if log == name:
            return
        if name.exists():
            name.replace(name.with_suffix(".old"))
        log.replace(name)
