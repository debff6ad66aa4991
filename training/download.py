"""The first step: a base model on disk, pinned by the digest of its bytes, free of anything that could run code."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.artifacts import BaseSnapshot
from pipelines.config import Config
from pipelines.errors import SourceRefused
from pipelines.settings import Settings
from pipelines.system.machine import local_int8_moe_kernel
from pipelines.system.manifest import manifest_digest, write_manifest
from training.builtin.recipe import RECIPES, Recipe, cached_base

log = logging.getLogger(__name__)

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
"""Endings of files that can hold pickled objects, and so any code."""

CODE = {".py", ".so", ".pyc"}


def download(config: Config, folder: Path) -> BaseSnapshot:
    """Fetch and pin the base model.

    Raises:
        SourceRefused: The source is unknown, not there, incomplete, or holds pickles, code or symlinks.
    """
    source = _choose(config)
    scheme, _, place = source.partition("://")
    if scheme == "builtin":
        if place not in RECIPES:
            raise SourceRefused(f"{source}: no such built-in model; there are {', '.join(RECIPES)}")
        return _builtin(source, place, RECIPES[place], Settings().cache)
    return _local(source, Path(place), folder)


def _choose(config: Config) -> str:
    """The source, or the fallback where the exported model could not be served."""
    source, fallback = config.model.source, config.model.fallback
    served_here = config.hardware.device != "cpu" or config.export.scheme != "int8_w8a8"
    if fallback is None or served_here or not is_mixture(source) or local_int8_moe_kernel() is not None:
        return source
    log.warning("no INT8 kernel for mixtures of experts on this CPU: %s is used instead of %s", fallback, source)
    return fallback


def is_mixture(source: str) -> bool:
    """Whether a source is a mixture of experts.

    Raises:
        SourceRefused: A local source has no readable config.json.
    """
    scheme, _, place = source.partition("://")
    if scheme == "builtin":
        return place in RECIPES and RECIPES[place].kind == "moe"
    config = _model_config(Path(place))
    text = config.get("text_config", config)
    return bool(text.get("num_experts") or text.get("num_local_experts"))


def _builtin(source: str, name: str, recipe: Recipe, cache: Path) -> BaseSnapshot:
    path = cached_base(name, recipe, cache)
    return BaseSnapshot(
        path=path,
        source=source,
        revision=recipe.digest()[:40],
        digest=manifest_digest(path),
        architecture=_architecture(path),
    )


def _local(source: str, path: Path, folder: Path) -> BaseSnapshot:
    """A published checkpoint used where it lies; its manifest is written into the step's folder, not into it."""
    refuse_unsafe(path)
    digest = write_manifest(path, into=folder)
    return BaseSnapshot(
        path=path,
        source=source,
        revision=digest[:40],
        digest=digest,
        manifest=folder,
        architecture=_architecture(path),
    )


def refuse_unsafe(path: Path) -> None:
    """Check a model folder before anything in it is used.

    Raises:
        SourceRefused: Names the file and the way out.
    """
    if not path.is_dir():
        raise SourceRefused(f"{path}: no such folder; model.source names one with a published checkpoint")
    files = list(_files(path))
    for file in files:
        ending = file.suffix.lower()
        if ending in PICKLES:
            raise SourceRefused(f"{file}: pickled files can run code; keep the *.safetensors only and delete this one")
        if ending in CODE:
            raise SourceRefused(f"{file}: a model brings no code of its own here; delete it if the model works without")
        if ending == ".json":
            _refuse_remote_code(file)
    if not any(file.suffix == ".safetensors" for file in files):
        raise SourceRefused(f"{path}: no *.safetensors in it; convert the weights, or download the model again")
    _refuse_missing_shards(path)
    _model_config(path)


def _files(path: Path) -> Iterator[Path]:
    for entry in sorted(path.rglob("*")):
        if entry.is_symlink():
            raise SourceRefused(f"{entry}: symlinks may lead anywhere; copy the file itself, as with `cp -rL`")
        if entry.is_file():
            yield entry


def _refuse_remote_code(file: Path) -> None:
    if '"auto_map"' in file.read_text(encoding="utf-8", errors="replace"):
        raise SourceRefused(
            f"{file}: `auto_map` asks to run code from the model's folder; use a model that transformers has itself, "
            f"or remove the entry"
        )


def _refuse_missing_shards(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    for name in sorted(set(_json(index).get("weight_map", {}).values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(name)):
            raise SourceRefused(f"{index}: shard name {name!r} leaves the folder; download the model again")
        if not (path / str(name)).is_file():
            raise SourceRefused(f"{path / str(name)}: named in the index and not there; download the model again")


def _model_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise SourceRefused(f"{file}: not there; a published checkpoint has one, download the model again")
    return _json(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceRefused(f"{file}: not JSON ({error}); download the model again") from None
    if not isinstance(content, dict):
        raise SourceRefused(f"{file}: holds {type(content).__name__}, not an object; download the model again")
    return content


def _architecture(path: Path) -> str:
    architectures = _model_config(path).get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise SourceRefused(f"{path / 'config.json'}: names no `architectures`; download the model again")
    return str(architectures[0])
