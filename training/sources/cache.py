"""Downloaded models on this machine: one folder each, whole or not there, one process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.model_source import Source
from pipelines.system.durable import partial_of
from pipelines.system.manifest import NAME, ManifestMismatch, read_manifest, verify_manifest

log = logging.getLogger(__name__)


def folder_of(cache: Path, source: Source, revision: str) -> Path:
    """Where a revision of a source lies, or will."""
    name = re.sub(r"[^\w.-]+", "--", source.place, flags=re.ASCII)[-120:]
    return cache / "bases" / f"{source.scheme}-{name}@{revision}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to make a folder; whoever comes second waits. A dead process holds no right."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is making %s; waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_whole(folder: Path) -> bool:
    """Whether a folder is finished and as it was.

    To hash 60 GB takes minutes, so that is done only if a file has another size or is younger than the manifest.
    """
    if not (folder / NAME).is_file():
        return False
    if _untouched(folder):
        return True
    try:
        verify_manifest(folder)
    except ManifestMismatch as damage:
        log.warning("%s; it is made whole again", damage)
        return False
    os.utime(folder / NAME)
    return True


def _untouched(folder: Path) -> bool:
    listed = read_manifest(folder)["files"]
    assert isinstance(listed, dict)
    written = (folder / NAME).stat().st_mtime_ns
    here = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file() and p.name != NAME}
    sizes = {name: facts["size"] for name, facts in listed.items()}
    return sizes == {name: facts.st_size for name, facts in here.items()} and all(
        facts.st_mtime_ns <= written for facts in here.values()
    )


def reopened(folder: Path, paths: set[str]) -> Path:
    """The folder's unfinished form, with what an earlier try, or a damaged finished form, has left of the model.

    Args:
        folder: The finished form.
        paths: Of the model's files; anything else is deleted.
    """
    partial = partial_of(folder)
    if folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        (folder / NAME).unlink(missing_ok=True)
        folder.rename(partial)
    partial.mkdir(parents=True, exist_ok=True)
    known = {partial / path for path in paths}
    known |= {partial_of(path) for path in known}
    for entry in sorted(partial.rglob("*")):
        if entry.is_symlink() or (entry.is_file() and entry not in known):
            entry.unlink()
    return partial
