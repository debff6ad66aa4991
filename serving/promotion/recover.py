"""What to do when the engine in service has ended or hangs: start it again, and after too many times go back.

A look takes no lock: to ask a hanging engine takes half a minute, in which people may want to change what serves. To
act takes the lock, and another look under it: what a person did meanwhile stands.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from pipelines.errors import EngineFailed, PromotionFailed, Unreachable, VlmopsError
from pipelines.settings import Settings
from pipelines.system.processes import require_free_port
from serving import front
from serving.client import QUICK, healthy
from serving.engine import VLLM, alive
from serving.probe import ProbeResult
from serving.promote import Aliases, Promotion
from serving.promotion.deploy_log import DeployLog, Note, State
from serving.promotion.drain import hold_and_drain
from serving.promotion.held import Held
from serving.promotion.lock import deploy_lock
from serving.served import Served, passed, read_confirmed, read_served, running, write_served
from serving.strategies.base import prove
from serving.strategies.restart import Restart

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 60.0
"""Between two starts; the first is at once, then 1 s, and twice as long each time."""

COMMAND_SECONDS = 10.0
"""For a command to get the deploy lock."""

PATIENCE_SECONDS = 5.0
"""For an engine to answer while the deploy lock is held."""

Trouble = Literal["ended", "held", "unconfirmed"]
"""No engine answers; one does, and requests wait all the same; nobody has watched what was released."""


class Names(Protocol):
    """Where it is told what answers requests."""

    def serves(self, version: int | None) -> None:
        """A version answers requests from now on, or none does."""


class Approvals(Aliases, Protocol):
    """What going back needs of the registry."""

    def approve(self, version: int, *, reviewer: str, reason: str) -> None:
        """A version should serve."""


def trouble(settings: Settings, patience: float = QUICK) -> Trouble | None:
    """What is wrong where no promotion is under way.

    Nothing is wrong where a person stopped it, nor where nothing can serve.

    Args:
        settings: Of this machine.
        patience: Seconds for the engine to say that it is well.
    """
    released = read_served(settings)
    if released is None or front.refusing(settings) or front.stopped(settings):
        return None
    if not any(map(alive, running(settings))) or not healthy(settings.engine_url, patience):
        return "ended"
    if front.holding(settings):
        return "held"
    return None if passed(settings, released) else "unconfirmed"


def start_again(settings: Settings, program: tuple[str, ...] = VLLM, registry: Names | None = None) -> Served:
    """Start what was released last, and release it again once it is proven; that needs no registry that answers.

    Raises:
        PromotionFailed: Nothing was ever released, or a promotion is under way.
        MachineUnfit: Something that is no engine in service has its port.
        VlmopsError: It does not serve; requests wait.
    """
    with deploy_lock(settings, COMMAND_SECONDS):
        version = read_served(settings)
        if version is None:
            raise PromotionFailed("no version was released yet; `vlmops promote` lets one serve")
        return _start(settings, version, program, registry)


def _start(settings: Settings, version: Served, program: tuple[str, ...], registry: Names | None) -> Served:
    log, held = DeployLog(settings.serving), Held(settings)

    def note(state: State, detail: str = "") -> None:
        log.write(version.version, state, detail, held.seconds)

    if not running(settings):
        require_free_port(settings.engine_port, "the engine")
    answers = healthy(settings.engine_url, PATIENCE_SECONDS)
    left = hold_and_drain(settings, held, note, version.serving.drain_seconds if answers else 0)
    if not left.nothing:
        note("drain", str(left))
    note("verify", str(version.model))
    version.verify()
    probed = _probe_running(settings, note, version) if answers else None
    probed = probed or Restart(settings, note, program).swap(version)
    write_served(settings, version)
    name_serving(registry, version.version)
    held.end()
    note("recovered", f"{probed.matched} of {probed.asked} golden answers")
    return version


def _probe_running(settings: Settings, note: Note, version: Served) -> ProbeResult | None:
    if list(running(settings).values()) != [version.log(settings)]:
        return None
    try:
        return prove(settings, note, version)
    except VlmopsError as error:
        note("probe", f"the engine that runs is replaced: {error}")
        return None


def name_serving(registry: Names | None, version: int | None) -> None:
    """Let the registry say what answers requests, if there is one that answers; nobody waits for another."""
    if registry is None:
        return
    try:
        registry.serves(version)
    except Unreachable as error:
        now = "that nothing serves" if version is None else f"that v{version} serves"
        log.warning("the alias `serving` does not say yet %s: %s", now, error)


class Recovery:
    """Starts again what ended, later each time, and goes back to what served before when that does not help."""

    def __init__(self, settings: Settings, registry: Approvals, program: tuple[str, ...] = VLLM) -> None:
        self._settings = settings
        self._registry = registry
        self._program = program
        self._log = DeployLog(settings.serving)

    def look(self) -> str | None:
        """Look once, and do what is to be done; return what was done, or None where nothing was.

        Raises:
            VlmopsError: It did not help; the next look tries again.
        """
        version, found = read_served(self._settings), trouble(self._settings)
        if version is None or found is None:
            return None
        crashes = self.crashes(version) + (found == "ended")
        gives_way = found == "ended" and crashes >= version.serving.crashes
        time.sleep(wait_seconds(crashes) if found == "ended" and not gives_way else 0)
        with ExitStack() as block:
            try:
                block.enter_context(deploy_lock(self._settings, 0))
            except PromotionFailed:
                return None  # a promotion looks after its engine itself
            if (read_served(self._settings), trouble(self._settings, PATIENCE_SECONDS)) != (version, found):
                return None  # whoever did something about it meanwhile knew better
            if found == "ended":
                self._log.write(version.version, "crashed", "its engine ended or does not answer")
            return self._go_back(version, crashes) if gives_way else self._mend(version, found)

    def _mend(self, version: Served, found: Trouble) -> str:
        if found == "unconfirmed":  # its promoter died, or the registry was away
            Promotion(self._settings, self._registry, version, self._program).run_locked()
            return f"v{version.version} has passed its watch"
        _start(self._settings, version, self._program, self._registry)
        return f"v{version.version} serves again"

    def crashes(self, version: Served) -> int:
        """How often it ended lately, by the deploy log: a supervisor that is started again goes on counting."""
        since = datetime.now(UTC) - timedelta(minutes=version.serving.crash_minutes)
        transitions = self._log.read()
        return sum(t.state == "crashed" and t.version == version.version and t.time > since for t in transitions)

    def _go_back(self, version: Served, crashes: int) -> str:
        reason = f"its engine ended {crashes} times within {version.serving.crash_minutes:g} minutes"
        confirmed = read_confirmed(self._settings)
        others = [] if confirmed is None else [v for v in (confirmed.now, confirmed.before) if v is not None]
        back = next((other for other in others if other.version != version.version), None)
        try:
            self._registry.aliases()
        except Unreachable as error:
            log.warning("v%d is started once more, for going back needs the registry: %s", version.version, error)
            return self._mend(version, "ended")
        self._registry.mark_failed(version.version, reason)
        if back is None:
            front.refuse(self._settings)
            self._log.write(version.version, "down", f"{reason}, and nothing served before it")
            self._registry.serves(None)
            raise EngineFailed(f"NOTHING SERVES: v{version.version}: {reason}, and nothing served before it")
        self._registry.approve(back.version, reviewer="supervisor", reason=f"v{version.version}: {reason}")
        Promotion(self._settings, self._registry, back, self._program).run_locked()
        return f"v{back.version} serves again: {reason}"


def wait_seconds(crashes: int) -> float:
    """Before the next start, after so many ends."""
    return 0.0 if crashes <= 1 else min(2.0 ** (crashes - 2), LONGEST_WAIT_SECONDS)
