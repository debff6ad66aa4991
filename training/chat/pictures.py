"""One image file: is it whole, and is it stored so that training and serving will see the same pixels?"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before a pixel is decoded."""

PLAIN = {"RGB", "L"}
"""Modes that every reader understands alike; others are stored anew as RGB."""

CONVERTIBLE = {"1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr"}


class Unusable(ValueError):
    """A row that cannot be used: a reason to count by and a detail to find it by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """A checked image, stored under the digest of its pixels."""

    name: str
    """File name in the folder it was stored in."""

    size: tuple[int, int]
    """Width and height in pixels."""

    pixels: str
    """SHA-256 of size and RGB values: equal for the same picture in another file format."""


def store_picture(source: Path, folder: Path) -> Picture:
    """Check an image file and store it in `folder`: as it is if it is plain, else as an RGB PNG.

    Raises:
        Unusable: It is missing, no image, truncated, too large to decode, or of a kind that cannot be shown faithfully.
    """
    if not source.is_file():
        raise Unusable("missing image", str(source))
    content = source.read_bytes()
    image = _decode(content, source)
    plain, kind = _faithful(image, source)
    rgb = plain.convert("RGB")
    pixels = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    if plain is not image:
        content, kind = _png(plain), "PNG"
    # Two files of the same picture may differ; the name tells them apart, so that storing twice is harmless.
    name = f"{pixels[:16]}-{hashlib.sha256(content).hexdigest()[:8]}.{kind.lower()}"
    (folder / name).write_bytes(content)
    return Picture(name, rgb.size, pixels)


def _decode(content: bytes, source: Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unusable("not an image", f"{source}: none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Unusable("image too large", f"{source}: more than {MAX_PIXELS} pixels") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable("image too large", f"{source}: {width} x {height} pixels, {MAX_PIXELS} are allowed")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged data
        raise Unusable("truncated image", f"{source}: {error}") from None
    return image


def _faithful(image: Image.Image, source: Path) -> tuple[Image.Image, str]:
    """The image itself if every reader shows it alike, else one that every reader does."""
    kind = str(image.format)
    if image.mode not in PLAIN | CONVERTIBLE:
        raise Unusable("unsupported image mode", f"{source}: mode {image.mode}; convert it to 8-bit RGB or grey")
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if image.mode in PLAIN and not turned and "transparency" not in image.info:
        return image, kind
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        paper = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(paper, upright.convert("RGBA"))
    return upright.convert("RGB"), kind


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=b"")
    return buffer.getvalue()
