"""The step `promote`: a registered version takes over without losing a request, or what served before comes back.

    lock -> already serving? -> verify -> choose -> hold -> drain -> swap, probe -> release -> watch -> alias `champion`

The alias `serving` moves while requests are held, so that it names what answers them, in the watch too, and back.
`champion` moves last and only for a version that has passed the probe and the watch. Killed at any point, the next call
finds out from the processes that run and from what is recorded where it is, and goes on from there. Whatever else goes
wrong, be it a full disk or Ctrl-C: before the swap what serves goes on, and from then on what served before comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NoReturn

from pipelines.artifacts import Deployment, ModelVersion
from pipelines.config import Config
from pipelines.errors import PromotionFailed, Unreachable, VlmopsError
from pipelines.registry import Registry
from pipelines.settings import Settings
from pipelines.system.processes import require_free_port
from serving import front
from serving.engine import VLLM
from serving.probe import ProbeResult
from serving.promotion.deploy_log import DeployLog, State
from serving.promotion.drain import Left, hold_and_drain, why_cut
from serving.promotion.held import Held
from serving.promotion.lock import deploy_lock
from serving.promotion.room import require_room
from serving.promotion.told import Aliases, name_serving, record
from serving.promotion.window import watch
from serving.served import (
    Served,
    confirm,
    passed,
    read_served,
    restored,
    running,
    served,
    serves_released,
    way_back,
    write_served,
)
from serving.strategies.base import Strategy, answers, prove
from serving.strategies.choose import choose
from serving.strategies.restart import Restart

log = logging.getLogger(__name__)


def promote(config: Config, folder: Path, version: ModelVersion) -> Deployment:  # noqa: ARG001  every step has one
    """Let a version serve. The step's process turns SIGTERM into an exception, so that one ends it as Ctrl-C does.

    Raises:
        PromotionFailed: It does not serve; says what serves instead.
        Unreachable: MLflow does not answer; before the swap nothing has changed, after it a rerun moves the alias.
    """
    settings = Settings()
    registry = Registry(settings, config.registry.model)
    return Promotion(settings, registry, served(config, version), at_deadline=config.serving.at_deadline).run()


class Promotion:
    """One version on its way into service."""

    def __init__(
        self,
        settings: Settings,
        registry: Aliases,
        target: Served,
        program: tuple[str, ...] = VLLM,
        at_deadline: Literal["abort", "cut"] = "abort",
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._target = target
        self._program = program
        self._at_deadline = at_deadline
        self._log = DeployLog(settings.serving)
        self._held = Held(settings)
        self._strategy: Strategy | None = None
        self._old: Served | None = None
        """The way back."""

        self._broken = False
        """Whether the target's engine runs, and an idle one did not answer as it should."""

        self._going_back = False

    def run(self) -> Deployment:
        """Promote, or undo and raise."""
        with deploy_lock(self._settings):
            return self.run_locked()

    def run_locked(self) -> Deployment:
        """The same, for who has the deploy lock."""
        aliases = self._registry.aliases()  # without a registry that answers nothing may move
        self._old = way_back(self._settings, self._target)
        probed = self._probe_running()
        named = aliases.get("champion") == self._target.version
        if probed is None or not (named and passed(self._settings, self._target)):
            probed = probed or self._swap()
            self._watch()
        self._registry.confirm(self._target.version)
        confirm(self._settings, self._target)  # last: until then whoever watches the service begins this call again
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
        """Release the target if it is what serves, or did before a crash of ours; None if it is not, or is broken."""
        if not serves_released(self._settings) or read_served(self._settings) != self._target:
            return None
        serving, was_open = self._target.serving, not front.holding(self._settings)
        if was_open and (probed := self._proven(serving.watch_match)):  # others in the batch move close decisions
            return probed
        if not answers(self._settings, self._target, 0 if was_open else serving.start_seconds):
            return None
        with self._what_serves_goes_on():
            self._quieten()
            probed = self._proven(serving.probe_match)
            self._broken = probed is None
            return probed

    def _proven(self, share: float) -> ProbeResult | None:
        try:
            probed = prove(self._settings, self._note, self._target, share)
        except VlmopsError as error:
            log.warning("the engine of v%d runs, but: %s", self._target.version, error)
            return None
        self._release(self._target)
        return probed

    def _swap(self) -> ProbeResult:
        with self._what_serves_goes_on():
            strategy = self._verify()
            self._record("swapping")
            left = self._quieten()
            if left.in_engine != 0:  # nothing can be put into an engine that computes
                strategy = self._strategy = Restart(self._settings, self._note, self._program)
        try:
            probed = strategy.swap(self._target)
            self._release(self._target)
        except Exception as error:  # noqa: BLE001  requests wait: whatever it is, something must serve
            self._undo(str(error) or repr(error))
        except BaseException:
            if self._held.now:
                with suppress(PromotionFailed):
                    self._undo("its promotion was interrupted")
            raise
        return probed

    @contextmanager
    def _what_serves_goes_on(self) -> Iterator[None]:
        """However the block ends early, requests reach what served before; not what was never released."""
        try:
            yield
        except BaseException as error:
            self._going_back = True
            if self._held.now and serves_released(self._settings) and not front.refusing(self._settings):
                self._held.end()
                self._note("abort", str(error) or repr(error))
            raise

    def _verify(self) -> Strategy:
        """Everything that can be known before a request has to wait."""
        self._note("verify", str(self._target.model))
        try:
            self._target.verify()
            require_room(self._target)
            self._strategy = choose(self._settings, self._target, self._note, self._program)
        except VlmopsError as error:
            if self._broken:
                self._undo(str(error))
            self._note("abort", str(error))
            self._fail(f"v{self._target.version} is refused and nothing was touched: {error}", str(error))
        if not running(self._settings):
            require_free_port(self._settings.engine_port, "the engine")
        return self._strategy

    def _quieten(self) -> Left:
        """Let new requests wait and those under way end; return what is cut.

        Raises:
            PromotionFailed: Some do not end, and nothing says that they may be cut.
        """
        seconds = 0 if self._held.now else self._target.serving.drain_seconds
        left = hold_and_drain(self._settings, self._held, self._note, seconds)
        if left.nothing:
            return left
        cut = self._at_deadline == "cut" or self._broken
        reason = why_cut(self._settings, self._target, left, cut=cut)
        if reason is None:
            raise PromotionFailed(
                f"requests were still running after {seconds:.0f} s ({left}); v{self._target.version} does not serve "
                f"and what served before goes on; try at a quieter time, or have them cut: serving.at_deadline `cut`"
            )
        self._note("drain", f"{left}; they are cut: {reason}")
        return left

    def _release(self, version: Served) -> None:
        write_served(self._settings, version)
        name_serving(self._registry, version.version)
        self._note("release", f"v{version.version}")
        self._held.end()

    def _watch(self) -> None:
        try:
            self._note("watch", f"{self._target.serving.watch_seconds:g} s")
            self._record("watched")
            watch(self._settings, self._target)
        except Exception as error:  # noqa: BLE001  what nobody watched is no better than what failed
            reason = str(error) or repr(error)
        else:
            return
        self._going_back = True
        left = hold_and_drain(self._settings, self._held, self._note, self._target.serving.drain_seconds)
        if not left.nothing:
            self._note("drain", f"{left}; they are cut: what computes them is broken")
        self._undo(reason)

    def _undo(self, reason: str) -> NoReturn:
        self._going_back = True
        self._note("undo", reason)
        failed = f"v{self._target.version} does not serve: {reason}"
        if self._old is None:
            self._down(f"{failed}\nNOTHING SERVES: there is no other version to return to", reason)
        try:
            self._bring_back(self._old)
            self._release(self._old)
        except Exception as error:  # noqa: BLE001  nothing is left to try
            self._down(f"{failed}\nNOTHING SERVES: v{self._old.version} did not come back either: {error}", reason)
        restored(self._settings, self._old, self._target)
        self._note("restored", f"v{self._old.version}")
        self._fail(f"{failed}\nv{self._old.version} serves again", reason, serves=self._old.version)

    def _bring_back(self, old: Served) -> None:
        restart = Restart(self._settings, self._note, self._program)
        if self._strategy is None or self._strategy.name == restart.name:
            restart.undo(old)
            return
        try:
            self._strategy.undo(old)
        except Exception as error:  # noqa: BLE001  a new engine needs nothing of the old one
            self._note("undo", f"by restart, for {self._strategy.name} did not: {error}")
            restart.undo(old)

    def _down(self, message: str, reason: str) -> NoReturn:
        front.refuse(self._settings)
        self._note("down", message)
        name_serving(self._registry, None)
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
        facts = {"deploy_state": state, "hold_seconds": f"{self._held.seconds:.2f}"}
        strategy = {"deploy_strategy": self._strategy.name} if self._strategy else {}
        record(self._registry, self._target.version, facts | strategy)

    def _note(self, state: State, detail: str = "") -> None:
        """Write the deploy log. A way forward needs it; a way back is taken without, as on a disk that is full."""
        try:
            self._log.write(self._target.version, state, detail, self._held.seconds)
        except OSError as error:
            if not self._going_back:
                raise
            log.error("the deploy log does not say `%s %s`: %s", state, detail, error)
