"""Where a row's image is: in the row itself, or in a file below the source's folder. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from training.chat.rejects import Unusable

MAX_BYTES = 256 * 2**20
"""Larger files are refused unread: no photograph within the pixel limit needs as much."""

DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?([^/?#@]*)([^?#]*)")
"""Scheme, host without a password, path without a query: what may be shown."""


@dataclass(frozen=True)
class ImageFile:
    """An image file's bytes, and how to name it to a person."""

    content: bytes
    name: str


def read_image(reference: str | bytes, source: Path) -> ImageFile:
    """The bytes that a row refers to.

    Args:
        reference: A path relative to `source`, a `file://` URI below it, a base64 `data:` URI, or the bytes themselves.
        source: The source's folder, absolute.

    Raises:
        Unusable: The file is missing, unreadable, too large or outside the folder, or the reference is a URL.
    """
    if isinstance(reference, bytes):
        return ImageFile(reference, "the row's own image")
    if reference.startswith("data:"):
        return ImageFile(_decode(reference), "the row's data URI")
    try:
        path = _inside(_local(reference), source)
        return ImageFile(_read(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing image", reference) from None
    except OSError as error:
        raise Unusable("unreadable image", f"{reference[:200]}: {error.strerror}") from None


def _decode(uri: str) -> bytes:
    head = DATA_URI.match(uri)
    if head is None:
        raise Unusable("bad data URI", f"{uri[:40]}; it must begin with data:image/png;base64, or the like")
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except binascii.Error as error:
        raise Unusable("bad data URI", f"{uri[:40]}: {error}") from None


def _local(reference: str) -> str:
    uri = URI.match(reference)
    if uri is None:
        return reference
    scheme, host, path = uri.groups()
    if scheme.lower() != "file":
        raise Unusable("image by URL", f"{scheme}://{host}{path}; nothing is fetched: store it beside the rows")
    if host not in {"", "localhost"}:
        raise Unusable("image outside the folder", f"{reference} names the host {host}")
    return unquote(path)


def _inside(path: str, source: Path) -> Path:
    place = Path(os.path.normpath(source / path))
    if not place.is_relative_to(source) or "\0" in path:
        raise Unusable("image outside the folder", repr(path))
    # No link below the folder is followed, so that `..` means what it says and the folder holds all that was used.
    below = place.relative_to(source).parts
    for i in range(len(below)):
        step = source.joinpath(*below[: i + 1])
        if step.is_symlink():
            raise Unusable("symbolic link", f"{step}; put the file itself into the folder")
    return place


def _read(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("missing image", f"{path} is no file")
    if status.st_size > MAX_BYTES:
        raise Unusable("image too large", f"{path}: {status.st_size:,} bytes, {MAX_BYTES:,} are allowed")
    return path.read_bytes()
