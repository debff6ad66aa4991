"""The images of a pack: below its folder, whole, and shown alike by every reader."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {"RGB", "L"}
MAX_BYTES = 64 * 2**20
"""Larger files are refused unread: each is sent within a request."""

MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before a pixel is decoded."""

THREADS = 8
"""That read images at most: each may hold half a GiB, of the largest image."""

DAMAGE = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on damaged data."""


T = TypeVar("T")


class Unfit(ValueError):
    """An image that cannot be asked about."""


@dataclass(frozen=True)
class Picture:
    """A checked image file."""

    content: str
    """SHA-256 of its bytes."""

    pixels: str
    """Of size and RGB values: equal for the same picture in another format."""

    size: tuple[int, int]
    """Width and height in pixels."""

    mebibytes: float


def read_pictures(folder: Path, paths: Iterable[str]) -> dict[str, Picture | Unfit]:
    """Check images of a pack, several at a time.

    Args:
        folder: Of the pack; nothing outside it is opened, and no link is followed.
        paths: Below it, with slashes.

    Returns:
        By path, in order: the image; or why it is unfit, being missing, elsewhere, damaged, too large, or of a kind
        that readers show differently.
    """
    with warnings.catch_warnings():  # around all threads: what is ignored is of the process
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower than that error's
        return _each(_read_picture, folder, paths)


def hash_files(folder: Path, paths: Iterable[str]) -> dict[str, str | Unfit]:
    """SHA-256 of the bytes of images, several at a time, with no pixel decoded.

    Returns:
        By path, in order: the digest; or why the file is unfit.
    """
    return _each(_hash_file, folder, paths)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of size and RGB values; a prepared data set names its image files by the first 16 digits."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(repr(rgb.size).encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def _each(read: Callable[[Path, str], T], folder: Path, paths: Iterable[str]) -> dict[str, T | Unfit]:
    """Pillow and hashlib let other threads run while they work, so that all cores do."""

    def found(path: str) -> T | Unfit:
        try:
            return read(folder, path)
        except Unfit as unfit:
            return unfit
        except OSError as error:
            return Unfit(f"cannot be read: {error.strerror}")

    names = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        return dict(zip(names, threads.map(found, names), strict=True))


def _read_picture(folder: Path, path: str) -> Picture:
    content = _bytes(_inside(folder, path))
    image = _decoded(content)
    return Picture(hashlib.sha256(content).hexdigest(), pixel_digest(image), image.size, len(content) / 2**20)


def _hash_file(folder: Path, path: str) -> str:
    return hashlib.sha256(_bytes(_inside(folder, path))).hexdigest()


def _inside(folder: Path, path: str) -> Path:
    if not path:
        raise Unfit("is not named")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise Unfit("lies outside the pack; images are paths below its folder")
    place = folder
    for part in parts:
        place /= part
        if place.is_symlink():
            raise Unfit("is a link, or lies behind one; put the file itself into the folder")
    if not place.is_file():
        raise Unfit("is not there" if not place.exists() else "is no file")
    return place


def _bytes(place: Path) -> bytes:
    if (size := place.stat().st_size) > MAX_BYTES:
        raise Unfit(f"has {size:,} bytes; {MAX_BYTES:,} are allowed")
    if not os.access(place, os.R_OK):
        raise Unfit("cannot be read; its permissions forbid it")
    return place.read_bytes()


def _decoded(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unfit(f"is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Unfit(f"has more than {MAX_PIXELS:,} pixels") from None
    except DAMAGE as error:
        raise Unfit(f"is damaged: {error}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unfit(f"has {width} x {height} pixels; {MAX_PIXELS:,} are allowed")
    try:
        image.load()
    except DAMAGE as error:
        raise Unfit(f"is damaged: {error}") from None
    _require_plain(image)
    return image


def _require_plain(image: Image.Image) -> None:
    if image.mode not in MODES or "transparency" in image.info:
        raise Unfit(f"has mode {image.mode}, which readers show differently; store it as 8-bit RGB or grey")
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except DAMAGE as error:
        raise Unfit(f"has a damaged EXIF block: {error}") from None
    if turned:
        raise Unfit("is to be turned by its EXIF block, which not every reader does; store it upright")
    if getattr(image, "n_frames", 1) > 1:
        raise Unfit("is animated; store the one frame that is meant")
