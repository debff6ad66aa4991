"""The step `promote`: a registered version takes over without losing a request, or what served before comes back.

    lock -> already serving? -> verify -> choose -> hold -> drain -> swap, probe -> release -> watch -> alias `champion`

`champion` moves last and only for a version that has passed the probe and the watch. Killed at any point, the next call
finds out from the processes that run and from what is recorded where it is, and goes on from there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NoReturn, Protocol

from pipelines.artifacts import Deployment, ModelVersion
from pipelines.config import Config
from pipelines.errors import EngineFailed, PromotionFailed, Unreachable, VlmopsError
from pipelines.registry import Registry
from pipelines.settings import Settings
from pipelines.system.manifest import verify_manifest
from pipelines.system.processes import require_free_port, wait_until
from serving import front
from serving.client import healthy, metrics
from serving.engine import VLLM, Engine, alive
from serving.probe import ProbeResult
from serving.promotion.deploy_log import DeployLog, State
from serving.promotion.held import Held
from serving.promotion.lock import deploy_lock
from serving.promotion.room import require_room
from serving.promotion.window import watch
from serving.served import Served, confirm, running, served, way_back, write_served
from serving.strategies.base import Strategy, prove
from serving.strategies.choose import choose
from serving.strategies.restart import Restart

log = logging.getLogger(__name__)


class Aliases(Protocol):
    """What a promotion needs of the registry."""

    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""

    def confirm(self, version: int) -> None:
        """A version serves."""

    def mark_failed(self, version: int, reason: str) -> None:
        """A version could not serve."""

    def record(self, version: int, facts: dict[str, str]) -> None:
        """What is to be read on a version's page."""


def promote(config: Config, folder: Path, version: ModelVersion) -> Deployment:  # noqa: ARG001  every step has one
    """Let a version serve.

    Raises:
        PromotionFailed: It does not serve; says what serves instead.
        Unreachable: MLflow does not answer; before the swap nothing has changed, after it a rerun moves the alias.
    """
    settings = Settings()
    return Promotion(settings, Registry(settings, config.registry.model), served(config, version)).run()


class Promotion:
    """One version on its way into service."""

    def __init__(self, settings: Settings, registry: Aliases, target: Served, program: tuple[str, ...] = VLLM) -> None:
        self._settings = settings
        self._registry = registry
        self._target = target
        self._program = program
        self._log = DeployLog(settings.serving)
        self._held = Held(settings)
        self._strategy: Strategy | None = None
        self._old: Served | None = None
        """The way back."""

    def run(self) -> Deployment:
        """Promote, or undo and raise."""
        with deploy_lock(self._settings):
            aliases = self._registry.aliases()  # without a registry that answers nothing may move
            self._old = way_back(self._settings, self._target)
            probed = self._probe_running()
            if probed is None or aliases.get("champion") != self._target.version:
                probed = probed or self._swap()
                self._watch()
            confirm(self._settings, self._target)
            self._registry.confirm(self._target.version)
            self._note("serving", f"{probed.matched} of {probed.asked} golden answers")
            self._record("serving")
            return self._deployment(probed, aliases)

    def _deployment(self, probed: ProbeResult, aliases: dict[str, int]) -> Deployment:
        champion = aliases.get("champion")
        return Deployment(
            endpoint=self._settings.front_url,
            name=self._target.serving.name,
            version=self._target.version,
            previous=aliases.get("previous") if champion == self._target.version else champion,
            strategy=self._strategy.name if self._strategy else "none",
            hold_seconds=self._held.seconds,
            probe_matched=probed.matched,
            probe_asked=probed.asked,
        )

    def _probe_running(self) -> ProbeResult | None:
        """Release the target if its engine runs already, as after a crash of ours; None if it does not."""
        target_log = self._target.log(self._settings)
        if list(running(self._settings).values()) != [target_log]:
            return None
        [pid] = running(self._settings)
        try:
            Engine(pid, self._settings.engine_url, target_log, self._target.names).wait_ready(
                self._target.serving.start_seconds
            )
            probed = prove(self._settings, self._note, self._target)
        except VlmopsError as error:
            log.warning("the engine of v%d runs and is replaced: %s", self._target.version, error)
            return None
        self._release(self._target)
        return probed

    def _swap(self) -> ProbeResult:
        strategy = self._verify()
        self._record("swapping")
        self._hold()
        self._drain()
        try:
            probed = strategy.swap(self._target)
        except VlmopsError as error:
            self._undo(str(error))
        self._release(self._target)
        return probed

    def _verify(self) -> Strategy:
        """Everything that can be known before a request has to wait."""
        self._note("verify", str(self._target.model))
        try:
            verify_manifest(self._target.model, self._target.digest)
            if not self._target.golden.is_file():
                raise EngineFailed(f"{self._target.golden} is missing; without golden answers no probe can pass")
            require_room(self._target)
            self._strategy = choose(self._settings, self._target, self._note, self._program)
        except VlmopsError as error:
            self._note("abort", str(error))
            self._fail(f"v{self._target.version} is refused and nothing was touched: {error}", str(error))
        if not running(self._settings):
            require_free_port(self._settings.engine_port, "the engine")
        return self._strategy

    def _hold(self) -> None:
        self._held.begin()
        self._note("hold")
        front.wait_noticed(self._settings)

    def _drain(self) -> None:
        self._note("drain")
        seconds = self._target.serving.drain_seconds
        late = PromotionFailed(
            f"requests were still running after {seconds:.0f} s; v{self._target.version} does not serve and what "
            f"served before goes on; raise serving.drain_seconds or try at a quieter time"
        )
        try:
            wait_until(self._drained, seconds, lambda: late, interval=0.1)
        except PromotionFailed:
            if not healthy(self._settings.engine_url):
                self._note("drain", "the engine no longer answers; what it had is lost")
                return
            self._held.end()
            self._note("abort", str(late))
            raise

    def _drained(self) -> bool:
        if not any(map(alive, running(self._settings))):
            return True
        try:
            return not front.in_flight(self._settings) and metrics(self._settings.engine_url).in_flight == 0
        except (Unreachable, EngineFailed):
            return False

    def _release(self, version: Served) -> None:
        write_served(self._settings, version)
        self._held.end()
        self._note("release", f"v{version.version}")

    def _watch(self) -> None:
        self._note("watch", f"{self._target.serving.watch_seconds:g} s")
        self._record("watched")
        try:
            watch(self._settings, self._target)
        except VlmopsError as error:
            reason = str(error)
        else:
            return
        self._hold()
        try:
            self._drain()
        except PromotionFailed:
            self._hold()  # it is broken: what it still has is cut, and counted
            self._note("drain", f"{front.in_flight(self._settings)} requests are cut")
        self._undo(reason)

    def _undo(self, reason: str) -> NoReturn:
        self._note("undo", reason)
        failed = f"v{self._target.version} does not serve: {reason}"
        if self._old is None:
            self._down(f"{failed}\nNOTHING SERVES: there is no other version to return to", reason)
        try:
            self._bring_back(self._old)
        except VlmopsError as error:
            self._down(f"{failed}\nNOTHING SERVES: v{self._old.version} did not come back either: {error}", reason)
        self._release(self._old)
        self._note("restored", f"v{self._old.version}")
        self._fail(f"{failed}\nv{self._old.version} serves again", reason, serves=self._old.version)

    def _bring_back(self, old: Served) -> None:
        restart = Restart(self._settings, self._note, self._program)
        if self._strategy is None or self._strategy.name == restart.name:
            restart.undo(old)
            return
        try:
            self._strategy.undo(old)
        except VlmopsError as error:
            self._note("undo", f"by restart, for {self._strategy.name} did not: {error}")
            restart.undo(old)

    def _down(self, message: str, reason: str) -> NoReturn:
        front.refuse(self._settings)
        self._note("down", message)
        self._fail(f"{message}\nRequests are answered 503 until a version is promoted", reason)

    def _fail(self, message: str, reason: str, *, serves: int | None = None) -> NoReturn:
        """Tell the registry why, and raise.

        Args:
            message: What is raised.
            reason: For the version's page.
            serves: What came back: `champion` names it already, unless an earlier promotion died on its way.
        """
        try:
            if serves is not None and self._registry.aliases().get("champion") != serves:
                self._registry.confirm(serves)
            self._registry.mark_failed(self._target.version, reason)
        except Unreachable as error:
            message = f"{message}\nThe registry does not know yet: {error}"
        self._record("failed")
        raise PromotionFailed(message)

    def _record(self, state: str) -> None:
        """Let the version's page say where it is; that must not stop a promotion."""
        facts = {"deploy_state": state, "hold_seconds": f"{self._held.seconds:.2f}"}
        try:
            self._registry.record(
                self._target.version, facts | ({"deploy_strategy": self._strategy.name} if self._strategy else {})
            )
        except Unreachable as error:
            log.warning("v%d is %s, which its page does not say: %s", self._target.version, state, error)

    def _note(self, state: State, detail: str = "") -> None:
        self._log.write(self._target.version, state, detail, self._held.seconds)
