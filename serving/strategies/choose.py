"""Which strategy takes a version into service: by its config, the device, and what changes."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.errors import EngineFailed, Unreachable
from pipelines.settings import Settings
from serving.engine import VLLM, alive, options
from serving.probe import probe
from serving.promotion.deploy_log import Note
from serving.served import Served, resident, running
from serving.strategies.adapter import ADAPTER
from serving.strategies.base import Strategy
from serving.strategies.in_place import Change, InPlace
from serving.strategies.reload import RELOAD
from serving.strategies.restart import Restart


def choose(settings: Settings, new: Served, note: Note, program: tuple[str, ...] = VLLM) -> Strategy:
    """The strategy for a version, given what runs; asks the running engine the new version's golden questions.

    Raises:
        EngineFailed: The config insists on `reload` or `adapter`, an engine serves, and that cannot be; says why.
    """
    restart, wanted = Restart(settings, note, program), new.serving.strategy
    if wanted == "restart" or not any(map(alive, running(settings))):
        note("choose", restart.name)
        return restart
    old = resident(settings)
    if old is None or old.log(settings) == new.log(settings):
        what = "no version that was released" if old is None else "the same version"
        note("choose", f"restart: what runs is {what}")
        return restart
    reason = objection(old, new)
    if reason is None:
        try:
            telling = _telling(settings, new)
        except (Unreachable, EngineFailed) as error:  # the old one's fault, which must not keep the new one away
            note("choose", f"restart: what runs does not answer: {error}")
            return restart
        if telling:
            change = change_to(new)
            note("choose", f"{change.name}: {len(telling)} golden questions tell v{new.version} from v{old.version}")
            return InPlace(settings, note, change, old, telling)
        reason = "what runs gives every golden answer of the new version: no probe could tell the two apart"
    if wanted != "auto":
        raise EngineFailed(f"serving.strategy is `{wanted}`, which cannot be: {reason}; set `auto` or `restart`")
    note("choose", f"restart: {reason}")
    return restart


def _telling(settings: Settings, new: Served) -> frozenset[str]:
    """Golden questions of the new version that what runs answers otherwise."""
    probed = probe(settings.engine_url, new.name, new.golden)
    if probed.silent:
        raise Unreachable("the engine", settings.engine_url, next(iter(probed.failures.values())))
    return frozenset(probed.failures)


def change_to(new: Served) -> Change:
    """What of a running engine could become this version."""
    return RELOAD if new.adapter is None else ADAPTER


def objection(old: Served, new: Served) -> str | None:
    """Why an engine of one version cannot take the other while it runs; None if it can."""
    return next(_objections(old, new), None)


def _objections(old: Served, new: Served) -> Iterator[str]:
    change = change_to(new)
    if new.serving.strategy not in {"auto", change.name}:
        kind = "a whole model" if new.adapter is None else "an adapter on a base"
        yield f"v{new.version} is {kind}, which goes into a running engine by `{change.name}`"
    yield from change.objections(old, new)
    if not old.reloadable:
        yield f"v{old.version} was started with serving.strategy `restart`"
    if old.names != new.names or _arguments(old) != _arguments(new):
        yield "the engine's arguments differ"


def _arguments(version: Served) -> list[str]:
    return options(version.serving, version.images, version.hardware)
