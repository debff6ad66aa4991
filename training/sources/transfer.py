"""Fetches listed files into a folder: in parallel, from where an earlier try ended, each checked against its hash."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipelines.errors import DownloadFailed
from pipelines.system.durable import commit, partial_of
from training.sources.connection import Address, Connection, Hiccup
from training.sources.progress import TransferProgress
from training.sources.published import PublishedFile

log = logging.getLogger(__name__)

WORKERS = 8
"""Files at a time; a CDN limits what one connection gets."""

CHUNK = 1 << 20

WHOLE_TRIES = 3
"""Downloads of a file whose bytes turn out wrong."""


@dataclass(frozen=True)
class Transfer:
    """From one place into one folder."""

    address: Callable[[str], Address]
    """Of a path, asked for at every try: signed addresses expire."""

    connection: Connection
    folder: Path
    progress: TransferProgress

    def fetch_all(self, files: Iterable[PublishedFile]) -> None:
        """Fetch what is not there yet, the largest files first. The first failure ends the others.

        Raises:
            SourceRefused: A file may not be had.
            DownloadFailed: A file does not come, or not as it was published.
        """
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="download") as pool:
            largest_first = sorted(files, key=lambda file: -file.size)
            tasks = [pool.submit(self._fetch, file) for file in largest_first]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:  # Ctrl-C and SIGTERM too: the threads would otherwise finish their gigabytes
                self.connection.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, file: PublishedFile) -> None:
        target = self.folder / file.path
        if target.is_file() and _digest(target, file) == file.digest:
            self.progress.found(file.size)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(target)
        self.progress.found(_size(partial))
        for _ in range(WHOLE_TRIES):
            seen = self.connection.persist(file.path, lambda: self._go_on(file, partial), lambda: _size(partial))
            if seen == file.digest:
                commit(partial, target)
                return
            log.warning("%s: %s is %s, published is %s", file.path, file.algorithm, seen, file.digest)
            self._discard(partial)
        raise DownloadFailed(
            f"{file.path}: {file.algorithm} is {seen} where {file.digest} is published, {WHOLE_TRIES} times; "
            f"the place or a proxy on the way serves other bytes: use another mirror"
        )

    def _go_on(self, file: PublishedFile, partial: Path) -> str:
        """One try at the rest of a file; returns the hash of the whole."""
        try:
            if _size(partial) < file.size or not partial.exists():
                self._receive(file, partial)
            return _digest(partial, file)
        except OSError as error:
            raise DownloadFailed(f"{partial}: {error.strerror}; mend that, and run it again") from error

    def _receive(self, file: PublishedFile, partial: Path) -> None:
        offset = _size(partial)
        with self.connection.open(file.path, self.address(file.path), offset=offset) as response:
            if offset and not _continues(response, offset):
                self._discard(partial)
            with partial.open("ab") as sink:
                for chunk in response.iter_raw():  # as they come: a cut then loses none
                    self.connection.require_running()
                    sink.write(chunk)
                    self.progress.received(len(chunk))
                    if sink.tell() > file.size:
                        break  # its hash will be wrong whatever follows
                sink.flush()
                os.fsync(sink.fileno())
        if _size(partial) < file.size:
            raise Hiccup(f"ended at {_size(partial)} of {file.size} bytes")

    def _discard(self, partial: Path) -> None:
        self.progress.found(-_size(partial))
        partial.unlink()


def bytes_at_hand(file: PublishedFile, folder: Path) -> int:
    """What is there of a file, whole or in part."""
    target = folder / file.path
    return _size(target) or _size(partial_of(target))


def _continues(response: httpx.Response, offset: int) -> bool:
    """Whether an answer starts at the byte that was asked for; a server may send the whole file instead."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, file: PublishedFile) -> str:
    digest = file.hasher()
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
