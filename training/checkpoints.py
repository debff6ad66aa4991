"""Checkpoints of a fine-tuning run: whole or ignored, of this run or refused, the newest ones kept."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pipelines.errors import RunConflict
from pipelines.system.manifest import ManifestMismatch, read_manifest, verify_manifest, write_manifest

log = logging.getLogger(__name__)


def seal(checkpoint: Path, recipe: str) -> None:
    """Declare a written checkpoint whole: its manifest, written last, names the recipe it belongs to."""
    write_manifest(checkpoint, recipe=recipe)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest; called only after the newest was sealed."""
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def newest_whole(folder: Path, recipe: str) -> Path | None:
    """The newest checkpoint that is whole, or None; damaged ones are named and deleted.

    Raises:
        RunConflict: A whole checkpoint was made with another config, data set or base.
    """
    for checkpoint in _newest_first(folder):
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


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
