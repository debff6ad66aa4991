"""Checkpoints of a fine-tuning run: whole or ignored, of this run or refused, the newest ones and the best one kept.

Trainer writes adapter, optimizer, schedule, RNG and history; the manifest is written last. It names the recipe: the
digest of config, base and data set. The sampler needs no state of its own, as its order follows from seed and step.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Container
from pathlib import Path

from pipelines.errors import RunConflict
from pipelines.system.manifest import ManifestMismatch, read_manifest, verify_manifest, write_manifest

log = logging.getLogger(__name__)


def seal(checkpoint: Path, recipe: str) -> None:
    """Declare a written checkpoint whole: its manifest, written last, names the recipe it belongs to."""
    write_manifest(checkpoint, recipe=recipe)


def path_of(folder: Path, step: int) -> Path:
    """Where Trainer puts the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def steps(folder: Path) -> list[int]:
    """Of which there are checkpoints, whole or not; the newest first."""
    return sorted((int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")), reverse=True)


def prune(folder: Path, keep: Container[int]) -> None:
    """Delete all but these; called only after the newest was sealed."""
    for step in steps(folder):
        if step not in keep:
            shutil.rmtree(path_of(folder, step))


def newest_whole(folder: Path, recipe: str) -> Path | None:
    """The newest checkpoint that is whole, or None; damaged ones are named and deleted.

    Raises:
        RunConflict: A whole checkpoint was made with another config, data set or base.
    """
    for checkpoint in (path_of(folder, step) for step in steps(folder)):
        try:
            verify_manifest(checkpoint)
        except ManifestMismatch as damage:
            log.warning("checkpoint %s is skipped: %s", checkpoint.name, damage)
            shutil.rmtree(checkpoint)
            continue
        if read_manifest(checkpoint)["recipe"] != recipe:
            raise RunConflict(
                f"{checkpoint} was made with another config, data set or base model; delete {folder} to train anew"
            )
        return checkpoint
    return None
