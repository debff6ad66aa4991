"""The strategy `reload`: the running engine reads the weights of another whole model in place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from pipelines.settings import Settings
from pipelines.system.manifest import read_manifest
from serving.served import Served
from serving.strategies.in_place import Call, Change


def _calls(settings: Settings, wanted: Served) -> Iterator[Call]:  # noqa: ARG001  other changes look first
    yield Call("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(wanted.model)}})


def _objections(old: Served, new: Served) -> Iterator[str]:
    if new.hardware.device != "cuda":
        yield "an engine on a CPU keeps rearranged copies of its weights, and serves the old ones or garbage afterwards"
    if old.adapter is not None:
        yield f"v{old.version} is an adapter on a base, and v{new.version} a whole model"
    if changed := sorted(_changed(_settled(old.model), _settled(new.model))):
        yield f"files differ that an engine reads only when it starts: {', '.join(changed)}"
    if changed := sorted(_changed(_shapes(old.model), _shapes(new.model))):
        yield f"{len(changed)} tensors differ in shape or type, such as {changed[0]}"


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


RELOAD: Final = Change("reload", _objections, _calls)
