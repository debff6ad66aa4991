"""The step `promote`: a registered version takes over without losing a request, or what served before comes back.

    lock -> already serving? -> verify -> hold -> drain -> swap -> probe -> release -> alias `champion`

`champion` moves last and only for a version that has passed the probe. Killed at any point, the next call finds out
from the processes that run and from `serving.json` where it is, and goes on from there.
"""

from __future__ import annotations

import logging
import time
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
from serving.deploy_log import DeployLog, State
from serving.engine import VLLM, Engine, alive
from serving.lock import deploy_lock
from serving.probe import ProbeResult, probe
from serving.restart import Restart
from serving.served import Served, read_served, running, served, write_served

log = logging.getLogger(__name__)


class Aliases(Protocol):
    """What a promotion needs of the registry."""

    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""

    def confirm(self, version: int) -> None:
        """A version serves."""

    def mark_failed(self, version: int, reason: str) -> None:
        """A version could not serve."""


class Strategy(Protocol):
    """How one version takes the place of another while the front holds. Both raise a VlmopsError when it is not up."""

    def swap(self, new: Served) -> None:
        """Bring the new version up."""

    def undo(self, old: Served) -> None:
        """Bring the old version back."""


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
        self._log = DeployLog(settings.serving)
        self._strategy: Strategy = {"restart": Restart}[target.serving.strategy](settings, self._note, program)
        self._held_since: float | None = None

    def run(self) -> Deployment:
        """Promote, or undo and raise."""
        with deploy_lock(self._settings):
            aliases = self._registry.aliases()  # without a registry that answers nothing may move
            probed = self._probe_running() or self._swap()
            self._registry.confirm(self._target.version)
            self._note("serving", f"{probed.matched} of {probed.asked} golden answers")
            return self._deployment(probed, aliases)

    def _deployment(self, probed: ProbeResult, aliases: dict[str, int]) -> Deployment:
        champion = aliases.get("champion")
        return Deployment(
            endpoint=self._settings.front_url,
            name=self._target.serving.name,
            version=self._target.version,
            previous=aliases.get("previous") if champion == self._target.version else champion,
            strategy=self._target.serving.strategy,
            hold_seconds=self._hold_seconds(),
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
            Engine(pid, self._settings.engine_url, target_log, (self._target.name,)).wait_ready(
                self._target.serving.start_seconds
            )
            probed = self._probe(self._target)
        except VlmopsError as error:
            log.warning("the engine of v%d runs and is replaced: %s", self._target.version, error)
            return None
        self._release()
        return probed

    def _swap(self) -> ProbeResult:
        old = read_served(self._settings)
        if old is not None and old.log(self._settings) == self._target.log(self._settings):
            old = None  # it is what failed
        self._verify()
        self._hold()
        self._drain()
        try:
            self._strategy.swap(self._target)
            probed = self._probe(self._target)
        except VlmopsError as error:
            self._undo(old, str(error))
        self._release()
        return probed

    def _verify(self) -> None:
        self._note("verify", str(self._target.model))
        try:
            verify_manifest(self._target.model, self._target.digest)
            if not self._target.golden.is_file():
                raise EngineFailed(f"{self._target.golden} is missing; without golden answers no probe can pass")
        except VlmopsError as error:
            self._note("abort", str(error))
            self._fail(f"v{self._target.version} is refused and nothing was touched: {error}", str(error))
        if not running(self._settings):
            require_free_port(self._settings.engine_port, "the engine")

    def _hold(self) -> None:
        front.hold(self._settings)
        self._held_since = time.monotonic()
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
            front.release(self._settings)
            self._note("abort", str(late))
            raise

    def _drained(self) -> bool:
        if not any(map(alive, running(self._settings))):
            return True
        try:
            return not front.in_flight(self._settings) and metrics(self._settings.engine_url).in_flight == 0
        except (Unreachable, EngineFailed):
            return False

    def _probe(self, wanted: Served) -> ProbeResult:
        self._note("probe", wanted.name)
        probed = probe(self._settings.engine_url, wanted.name, wanted.golden)
        probed.require(wanted.serving.probe_match)
        return probed

    def _release(self) -> None:
        write_served(self._settings, self._target)
        front.release(self._settings)
        self._note("release")

    def _undo(self, old: Served | None, reason: str) -> NoReturn:
        self._note("undo", reason)
        failed = f"v{self._target.version} does not serve: {reason}"
        if old is None:
            self._down(f"{failed}\nNOTHING SERVES: there is no other version to return to", reason)
        try:
            self._strategy.undo(old)
            self._probe(old)
        except VlmopsError as error:
            self._down(f"{failed}\nNOTHING SERVES: v{old.version} did not come back either: {error}", reason)
        front.release(self._settings)
        self._note("restored", f"v{old.version}")
        self._fail(f"{failed}\nv{old.version} serves again", reason)

    def _down(self, message: str, reason: str) -> NoReturn:
        front.refuse(self._settings)
        self._note("down", message)
        self._fail(f"{message}\nRequests are answered 503 until a version is promoted", reason)

    def _fail(self, message: str, reason: str) -> NoReturn:
        """Tell the registry why, and raise."""
        try:
            self._registry.mark_failed(self._target.version, reason)
        except Unreachable as error:
            message = f"{message}\nThe registry does not know yet: {error}"
        raise PromotionFailed(message)

    def _note(self, state: State, detail: str = "") -> None:
        self._log.write(self._target.version, state, detail, self._hold_seconds())

    def _hold_seconds(self) -> float:
        return 0.0 if self._held_since is None else time.monotonic() - self._held_since
