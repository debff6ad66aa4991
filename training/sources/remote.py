"""Downloads a pinned model: list it, look at the disk, fetch and check what is small, fetch the weights, record all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipelines.errors import DownloadFailed
from pipelines.model_source import Source
from pipelines.settings import Hubs
from pipelines.system.durable import commit
from pipelines.system.machine import require_disk
from pipelines.system.manifest import read_manifest, write_manifest
from training.sources.cache import folder_of, is_whole, locked, reopened
from training.sources.connection import Address, Connection, WaysOut
from training.sources.hub import Hub
from training.sources.modelscope import ModelScope
from training.sources.progress import TransferProgress
from training.sources.published import PublishedFile, fingerprint
from training.sources.safety import refuse_code, refuse_incomplete, refuse_unsafe
from training.sources.transfer import Transfer, bytes_at_hand

log = logging.getLogger(__name__)

MARGIN = 1 << 30
"""Bytes that stay free: the rest of the machine writes too."""

Pause = Callable[[float], object]


class Place(Protocol):
    """What a scheme has to offer."""

    ways_out: WaysOut

    def files(self, connection: Connection) -> list[PublishedFile]:
        """The files that the model needs."""
        ...

    def address(self, path: str) -> Address:
        """Where one of them is fetched from."""
        ...


def place_of(source: Source) -> Place:
    """Who publishes a source."""
    if source.scheme == "hf":
        return Hub(source, Hubs())
    if source.scheme == "modelscope":
        return ModelScope(source, Hubs())
    from training.sources.bucket import Bucket  # boto3 takes a second to import

    return Bucket(source)


def fetch(source: Source, cache: Path, *, small_only: bool = False, pause: Pause | None = None) -> Path:
    """The folder of a model, downloaded if it is not there or not whole.

    A pinned model that is there is used without the network. Two processes that ask at once: one downloads.

    Args:
        source: Of a scheme that `place_of` knows.
        cache: Where downloaded models lie.
        small_only: Stop before the weights; the folder is then an unfinished one.
        pause: Waits so many seconds between two tries.

    Raises:
        SourceRefused: There is no access, nothing there, or what is there may not be used.
        DownloadFailed: A file does not come, or not as it was published; another run goes on from what is there.
        MachineUnfit: The disk is too small.
    """
    if source.revision is not None:
        folder = folder_of(cache, source, source.revision)
        with locked(folder):
            if is_whole(folder):
                return folder
    place = place_of(source)
    with Connection(place.ways_out, pause) as connection:
        files = place.files(connection)
        revision = source.revision or fingerprint(files)
        folder = folder_of(cache, source, revision)
        with locked(folder):
            if is_whole(folder):
                return folder
            partial = reopened(folder, {file.path for file in files})
            _download(files, partial, place, connection, small_only=small_only, source=source)
            if small_only:
                return partial
            _finish(files, partial, source, revision)
            commit(partial, folder)
    log.info("%s is at %s, revision %s", source, folder, revision)
    return folder


def _download(
    files: list[PublishedFile], partial: Path, place: Place, connection: Connection, *, small_only: bool, source: Source
) -> None:
    """Fetch what is missing; the weights after everything else has been found to be in order."""
    small = [file for file in files if not file.is_weights]
    wanted = small if small_only else files
    missing = sum(max(0, file.size - bytes_at_hand(file, partial)) for file in wanted)
    require_disk(partial, missing + MARGIN, f"downloading {source}")
    progress = TransferProgress(sum(file.size for file in wanted))
    transfer = Transfer(place.address, connection, partial, progress)
    try:
        transfer.fetch_all(small)
        refuse_code(partial)
        refuse_incomplete(partial, {file.path for file in files})
        if not small_only:
            transfer.fetch_all(file for file in files if file.is_weights)
    finally:
        progress.stop()


def _finish(files: list[PublishedFile], partial: Path, source: Source, revision: str) -> None:
    """Hash the whole folder once more, from disk, and record it."""
    refuse_unsafe(partial)
    published = {file.path: f"{file.algorithm}:{file.digest}" for file in files}
    write_manifest(partial, source=str(source), revision=revision, published=published)
    recorded = read_manifest(partial)["files"]
    assert isinstance(recorded, dict)
    for file in files:
        if file.algorithm == "sha256" and recorded[file.path]["sha256"] != file.digest:
            raise DownloadFailed(f"{partial / file.path} has changed on this disk; check the disk, then run it again")
