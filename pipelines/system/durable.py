"""Files that are either whole or not there: written beside their place, synced, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write `text` so that a reader finds the old file or the whole new one, and a crash leaves no third state."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """The same of bytes."""
    partial = partial_of(path)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    commit(partial, path)


def partial_of(path: Path) -> Path:
    """Where a file or folder lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


def commit(partial: Path, path: Path) -> None:
    """Give a finished (written and synced) file or folder its name, and make the name itself durable."""
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log that is only ever appended to; durable on return.

    What a crash left of an earlier line is ended first: else it would take this one with it.
    """
    with path.open("ab+") as file:
        file.write(b"" if _ends_a_line(file) else b"\n")
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    return file.read(1) in {b"", b"\n"}


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
