"""Images as they are sent: upright, without metadata, and no larger than the engine will look at.

The engine shrinks whatever has more pixels than its cap, so that sending them costs upload and gains nothing. Sides are
not rounded to its patches, which would bend the aspect: it rounds them itself, and may end up a row or a column of
visual tokens off what it makes of the original.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import BadInput

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST_ASPECT = 200
"""Beyond it Qwen's image processor refuses; within it no side of a shrunk image is empty."""

QUALITY = 95
HARMLESS = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "progressive", "progression", "gamma"}
"""What a file may say beside its pixels."""

DAMAGE = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on damaged data."""


@dataclass(frozen=True)
class Picture:
    """An image to be sent."""

    data: bytes
    kind: Literal["JPEG", "PNG"]
    size: tuple[int, int]
    """Width and height in pixels."""

    @property
    def url(self) -> str:
        """As a data URL."""
        return f"data:image/{self.kind.lower()};base64,{base64.b64encode(self.data).decode()}"


def shrink(path: Path, max_pixels: int) -> Picture:
    """Read an image for upload: JPEG stays JPEG, everything else becomes a lossless PNG.

    Args:
        path: PNG, JPEG or WebP. Of an animation the first frame is taken; what is transparent becomes white.
        max_pixels: Width times height; larger images are shrunk to it, smaller ones stay as large as they are.

    Raises:
        BadInput: It is missing, damaged, too large to decode, of an odd mode, or too long and narrow.
    """
    try:
        with _open(path) as opened:
            kind: Literal["JPEG", "PNG"] = "JPEG" if opened.format == "JPEG" else "PNG"
            image = _upright(opened, path)
            size = fitted(image.size, max_pixels)
            if size == opened.size and _bare(opened):
                return Picture(path.read_bytes(), kind, size)
            return Picture(_encode(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0), kind), kind, size)
    except DAMAGE as error:
        raise BadInput(f"{path}: the image is damaged ({error}); save it again") from None


def fitted(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Width and height with the same aspect, to less than a pixel, and at most so many pixels; never larger."""
    width, height = size
    if width * height <= max_pixels:
        return size
    # In whole numbers: the square root of a quotient may come out a little too large.
    return math.isqrt(max_pixels * width // height), math.isqrt(max_pixels * height // width)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise BadInput(f"{path}: no such image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadInput(f"{path}: no image that can be asked about; use {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadInput(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels, too large to decode; shrink it") from None


def _bare(opened: Image.Image) -> bool:
    """Whether the file of a loaded image can be sent as it is: JPEG is not rounded once more for nothing."""
    return opened.format in {"JPEG", "PNG"} and opened.mode in {"RGB", "L"} and opened.info.keys() <= HARMLESS


def _upright(opened: Image.Image, path: Path) -> Image.Image:
    """As a viewer shows it, in RGB or grey, with nothing that is not a pixel."""
    width, height = opened.size
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise BadInput(f"{path}: {width} x {height} pixels; one side may be {LONGEST_ASPECT} times the other; cut it")
    if opened.mode.startswith(("I", "F")):
        raise BadInput(f"{path}: mode {opened.mode} has more than 8 bits a channel; save it as 8-bit RGB or grey")
    image = ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    plain = image if image.mode in {"RGB", "L"} else image.convert("RGB")
    bare = Image.new(plain.mode, plain.size)
    bare.paste(plain)  # pixels alone: comments, colour profiles and positions stay behind
    return bare


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, kind, quality=QUALITY, subsampling=0)  # colour at full resolution: text stays readable
    else:
        image.save(buffer, kind)
    return buffer.getvalue()
