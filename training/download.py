"""The first step: a base model on disk, pinned by the digest of its bytes, free of anything that could run code."""

from __future__ import annotations

import logging
from pathlib import Path

from pipelines.artifacts import BaseSnapshot
from pipelines.config import Config
from pipelines.errors import SourceRefused
from pipelines.model_source import Source, parse_source
from pipelines.settings import Settings
from pipelines.system.machine import local_int8_moe_kernel
from pipelines.system.manifest import manifest_digest, read_manifest, write_manifest
from training.builtin.recipe import RECIPES, Recipe, cached_base
from training.sources.remote import fetch
from training.sources.safety import architecture, model_config, refuse_unsafe

log = logging.getLogger(__name__)


def download(config: Config, folder: Path) -> BaseSnapshot:
    """Fetch and pin the base model.

    Raises:
        SourceRefused: The source is unknown, not there, incomplete, or holds pickles, code or symlinks.
        DownloadFailed: A file did not arrive whole; another run goes on from what is there.
        MachineUnfit: The disk is too small for it.
    """
    source = parse_source(_choose(config))
    if source.scheme == "builtin":
        if source.place not in RECIPES:
            raise SourceRefused(f"{source}: no such built-in model; there are {', '.join(RECIPES)}")
        return _builtin(source, RECIPES[source.place], Settings().cache)
    if source.scheme == "file":
        return _local(source, Path(source.place), folder)
    return _remote(source, Settings().cache)


def _choose(config: Config) -> str:
    """The source, or the fallback where the exported model could not be served."""
    source, fallback = config.model.source, config.model.fallback
    served_here = config.hardware.device != "cpu" or config.export.stored.bits is None
    if fallback is None or served_here or local_int8_moe_kernel() is not None or not is_mixture(parse_source(source)):
        return source
    log.warning("no INT8 kernel for mixtures of experts on this CPU: %s is used instead of %s", fallback, source)
    return fallback


def is_mixture(source: Source) -> bool:
    """Whether a source is a mixture of experts.

    Raises:
        SourceRefused: It has no readable config.json, which is all that is looked at here.
        DownloadFailed: That did not arrive.
    """
    if source.scheme == "builtin":
        return source.place in RECIPES and RECIPES[source.place].kind == "moe"
    local = source.scheme == "file"
    config = model_config(Path(source.place) if local else fetch(source, Settings().cache, small_only=True))
    text = config.get("text_config", config)
    return bool(text.get("num_experts") or text.get("num_local_experts"))


def _builtin(source: Source, recipe: Recipe, cache: Path) -> BaseSnapshot:
    path = cached_base(source.place, recipe, cache)
    return BaseSnapshot(
        path=path,
        source=str(source),
        revision=recipe.digest()[:40],
        digest=manifest_digest(path),
        architecture=architecture(path),
    )


def _local(source: Source, path: Path, folder: Path) -> BaseSnapshot:
    """A published checkpoint used where it lies; its manifest is written into the step's folder, not into it."""
    refuse_unsafe(path)
    digest = write_manifest(path, into=folder)
    return BaseSnapshot(
        path=path,
        source=str(source),
        revision=digest[:40],
        digest=digest,
        manifest=folder,
        architecture=architecture(path),
    )


def _remote(source: Source, cache: Path) -> BaseSnapshot:
    path = fetch(source, cache)
    return BaseSnapshot(
        path=path,
        source=str(source),
        revision=str(read_manifest(path)["revision"]),
        digest=manifest_digest(path),
        architecture=architecture(path),
    )
