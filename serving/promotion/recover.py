"""What to do when the engine in service has ended or hangs: start it again, and after too many times go back."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from pipelines.errors import EngineFailed, PromotionFailed, VlmopsError
from pipelines.settings import Settings
from pipelines.system.manifest import verify_manifest
from serving import front
from serving.client import healthy
from serving.engine import VLLM, alive
from serving.probe import ProbeResult
from serving.promote import Aliases, Promotion
from serving.promotion.deploy_log import DeployLog, Note, State
from serving.promotion.lock import deploy_lock
from serving.served import Served, read_confirmed, read_served, running, write_served
from serving.strategies.base import prove
from serving.strategies.restart import Restart

LONGEST_WAIT_SECONDS = 60.0
"""Between two starts; the first is at once, then 1 s, and twice as long each time."""


class Approvals(Aliases, Protocol):
    """What going back needs of the registry."""

    def approve(self, version: int, *, reviewer: str, reason: str) -> None:
        """A version should serve."""


def trouble(settings: Settings) -> Literal["ended", "held"] | None:
    """What is wrong where no promotion is under way: no engine answers, or one does and requests wait all the same.

    Nothing is wrong where a person stopped it, nor where nothing can serve.
    """
    transitions = DeployLog(settings.serving).read()
    if read_served(settings) is None or front.refusing(settings) or transitions[-1].state == "stopped":
        return None
    if not any(map(alive, running(settings))) or not healthy(settings.engine_url):
        return "ended"
    return "held" if front.holding(settings) else None


def start_again(settings: Settings, program: tuple[str, ...] = VLLM) -> Served:
    """Start what was released last, and release it again once it is proven; the registry is not needed for that.

    Raises:
        PromotionFailed: Nothing was ever released, or a promotion is under way.
        VlmopsError: It does not serve; requests wait.
    """
    with deploy_lock(settings):
        version = read_served(settings)
        if version is None:
            raise PromotionFailed("no version was released yet; `vlmops promote` lets one serve")
        log = DeployLog(settings.serving)
        began = time.monotonic()

        def note(state: State, detail: str = "") -> None:
            log.write(version.version, state, detail, time.monotonic() - began)

        front.hold(settings)
        note("verify", str(version.model))
        verify_manifest(version.model, version.digest)
        probed = _probe_running(settings, note, version) or Restart(settings, note, program).swap(version)
        write_served(settings, version)
        front.release(settings)
        note("recovered", f"{probed.matched} of {probed.asked} golden answers")
        return version


def _probe_running(settings: Settings, note: Note, version: Served) -> ProbeResult | None:
    if list(running(settings).values()) != [version.log(settings)] or not healthy(settings.engine_url):
        return None
    try:
        return prove(settings, note, version)
    except VlmopsError as error:
        note("probe", f"the engine that runs is replaced: {error}")
        return None


class Recovery:
    """Starts again what ended, later each time, and goes back to what served before when that does not help."""

    def __init__(self, settings: Settings, registry: Approvals, program: tuple[str, ...] = VLLM) -> None:
        self._settings = settings
        self._registry = registry
        self._program = program
        self._log = DeployLog(settings.serving)

    def look(self) -> str | None:
        """Look once, and do what is to be done; return what was done, or None where all is well.

        Raises:
            VlmopsError: It did not help; the next look tries again.
        """
        version = read_served(self._settings)
        try:
            with deploy_lock(self._settings):
                found = trouble(self._settings)
                if version is not None and found == "ended":
                    self._log.write(version.version, "crashed", "its engine ended or does not answer")
        except PromotionFailed:
            return None  # a promotion looks after its engine itself
        if version is None or found is None:
            return None
        crashes = self.crashes(version)
        if found == "ended" and crashes >= version.serving.crashes:
            return self._go_back(version, crashes)
        time.sleep(wait_seconds(crashes) if found == "ended" else 0)
        start_again(self._settings, self._program)
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
        self._registry.aliases()  # without a registry that answers it is started again by the next look
        self._registry.mark_failed(version.version, reason)
        if back is None:
            front.refuse(self._settings)
            self._log.write(version.version, "down", f"{reason}, and nothing served before it")
            raise EngineFailed(f"NOTHING SERVES: v{version.version}: {reason}, and nothing served before it")
        self._registry.approve(back.version, reviewer="supervisor", reason=f"v{version.version}: {reason}")
        Promotion(self._settings, self._registry, back, self._program).run()
        return f"v{back.version} serves again: {reason}"


def wait_seconds(crashes: int) -> float:
    """Before the next start, after so many ends."""
    return 0.0 if crashes <= 1 else min(2.0 ** (crashes - 2), LONGEST_WAIT_SECONDS)
