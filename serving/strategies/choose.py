"""Which strategy takes a version into service: by its config, the device, and what changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipelines.errors import EngineFailed
from pipelines.settings import Settings
from pipelines.system.manifest import read_manifest
from serving.engine import VLLM, alive, options
from serving.probe import probe
from serving.promotion.deploy_log import Note
from serving.served import Served, resident, running
from serving.strategies.base import Strategy
from serving.strategies.reload import Reload
from serving.strategies.restart import Restart


def choose(settings: Settings, new: Served, note: Note, program: tuple[str, ...] = VLLM) -> Strategy:
    """The strategy for a version, given what runs; asks the running engine the new version's golden questions.

    Raises:
        EngineFailed: The config insists on `reload`, an engine runs, and that cannot be; with the reason.
    """
    restart = Restart(settings, note, program)
    if new.serving.strategy == "restart" or not any(map(alive, running(settings))):
        note("choose", restart.name)
        return restart
    old = resident(settings)
    reason = "what runs is no version that was released" if old is None else objection(old, new)
    telling: frozenset[str] = frozenset()
    if reason is None:
        telling = frozenset(probe(settings.engine_url, new.name, new.golden).failures)
        if not telling:
            reason = "what runs gives every golden answer of the new version: no probe could tell the two apart"
    if old is not None and reason is None:
        note("choose", f"reload: {len(telling)} golden questions tell v{new.version} from v{old.version}")
        return Reload(settings, note, old, telling)
    if new.serving.strategy == "reload":
        raise EngineFailed(f"serving.strategy is `reload`, which cannot be: {reason}; set `auto` or `restart`")
    note("choose", f"restart: {reason}")
    return restart


def objection(old: Served, new: Served) -> str | None:
    """Why an engine of one version cannot read the weights of the other; None if it can."""
    return next(_objections(old, new), None)


def _objections(old: Served, new: Served) -> Iterator[str]:
    if new.hardware.device != "cuda":
        yield "an engine on a CPU keeps rearranged copies of its weights, and serves the old ones or garbage afterwards"
    if not old.reloadable:
        yield f"v{old.version} was started with serving.strategy `restart`"
    if old.names != new.names or _arguments(old) != _arguments(new):
        yield "the engine's arguments differ"
    if changed := sorted(_changed(_settled(old.model), _settled(new.model))):
        yield f"files differ that an engine reads only when it starts: {', '.join(changed)}"
    if changed := sorted(_changed(_shapes(old.model), _shapes(new.model))):
        yield f"{len(changed)} tensors differ in shape or type, such as {changed[0]}"


def _arguments(version: Served) -> list[str]:
    return options(version.serving, version.images, version.hardware)


def _settled(model: Path) -> Mapping[str, Any]:
    """Hashes of all files but the weights: what a tokenizer, a template or the architecture is made of."""
    files = read_manifest(model)["files"]
    assert isinstance(files, dict)
    weights = (".safetensors", ".safetensors.index.json")
    return {name: fact["sha256"] for name, fact in files.items() if not name.endswith(weights)}


def _shapes(model: Path) -> Mapping[str, Any]:
    """Shape and type of every tensor."""
    shapes = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no dict
                stored = tensors.get_slice(name)
                shapes[name] = (tuple(stored.get_shape()), stored.get_dtype())
    return shapes


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in itertools.chain(old, new.keys() - old.keys()):
        if old.get(name) != new.get(name):
            yield name
