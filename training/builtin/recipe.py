"""`builtin://tiny-qwen3-vl-moe` and `builtin://tiny-qwen3-vl`: base models made by seed, the same bytes every time.

Built once, cached by the digest of the recipe. To find one in the cache needs no PyTorch.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.system.durable import commit
from pipelines.system.manifest import ManifestMismatch, text_digest, verify_manifest

log = logging.getLogger(__name__)

MODULES = (
    "builtin/architecture.py",
    "builtin/build.py",
    "builtin/drawings.py",
    "builtin/processor.py",
    "builtin/recipe.py",
    "chat/encoding.py",
    "chat/positions.py",
    "layers/attention.py",
    "loss.py",
)
"""Whose source text is part of every recipe."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, together with the source of the modules that it names."""

    kind: Literal["moe", "dense"]
    threads: int = 1
    """The order of sums depends on it, and with it the last bits of the weights. One, because two are seven times
    slower as soon as anything else wants the cores."""

    seed: int = 0
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-3
    pictures: dict[str, int] = field(default_factory=lambda: {"printed": 4200, "colours": 600, "shapes": 1200})

    def digest(self) -> str:
        """Names the recipe: its values and the text of the modules that carry it out."""
        sources = [(Path(__file__).parents[1] / module).read_text() for module in MODULES]
        return text_digest(repr(self), *sources)


RECIPES = {"tiny-qwen3-vl-moe": Recipe("moe"), "tiny-qwen3-vl": Recipe("dense")}


def cached_base(name: str, recipe: Recipe, cache: Path) -> Path:
    """The folder of a built-in model; built if it is not there or not whole.

    Two processes that ask at once: one builds, the other waits.
    """
    folder = cache / "models" / f"{name}-{recipe.digest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not _whole(folder):
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            from training.builtin import build  # imports PyTorch, which finding a model in the cache does not need

            build.build_base(recipe, partial)
            commit(partial, folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        verify_manifest(folder)
    except ManifestMismatch as damage:
        log.warning("%s; it is built again", damage)
        return False
    return True
