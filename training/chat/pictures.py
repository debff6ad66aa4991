"""One image file: is it whole, and is it stored so that training and serving will see the same pixels?"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from training.chat.references import ImageFile
from training.chat.rejects import Unusable

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Larger images are refused by their header, before a pixel is decoded."""

PLAIN = {"RGB", "L"}
"""Modes that every reader understands alike; others are stored anew as RGB."""

CONVERTIBLE = {"1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr"}

DAMAGE = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on damaged data."""


@dataclass(frozen=True)
class Picture:
    """A checked image, stored under the digest of its pixels."""

    name: str
    """File name in the folder it was stored in."""

    size: tuple[int, int]
    """Width and height in pixels."""

    pixels: str
    """SHA-256 of size and RGB values: equal for the same picture in another file format."""


def store_picture(file: ImageFile, folder: Path) -> Picture:
    """Check an image file and store it in `folder`: as it is if it is plain, else as an RGB PNG.

    Raises:
        Unusable: It is no image, truncated, too large to decode, or of a kind that cannot be shown faithfully.
    """
    image = _decode(file)
    plain, kind = _faithful(image, file.name)
    rgb = plain.convert("RGB")
    pixels = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    content = file.content
    if plain is not image:
        content, kind = _png(plain), "PNG"
    # Two files of the same picture may differ; the name tells them apart, so that storing twice is harmless.
    name = f"{pixels[:16]}-{hashlib.sha256(content).hexdigest()[:8]}.{kind.lower()}"
    (folder / name).write_bytes(content)
    return Picture(name, rgb.size, pixels)


def _decode(file: ImageFile) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.content), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unusable("not an image", f"{file.name}: none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Unusable("image too large", f"{file.name}: more than {MAX_PIXELS} pixels") from None
    except DAMAGE as error:
        raise Unusable("truncated image", f"{file.name}: {error}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable("image too large", f"{file.name}: {width} x {height} pixels, {MAX_PIXELS} are allowed")
    try:
        image.load()
    except DAMAGE as error:
        raise Unusable("truncated image", f"{file.name}: {error}") from None
    return image


def _faithful(image: Image.Image, name: str) -> tuple[Image.Image, str]:
    """The image itself if every reader shows it alike, else one that every reader does."""
    kind = str(image.format)
    if image.mode not in PLAIN | CONVERTIBLE:
        raise Unusable("unsupported image mode", f"{name}: mode {image.mode}; convert it to 8-bit RGB or grey")
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except DAMAGE as error:
        raise Unusable("truncated image", f"{name}: its EXIF block is damaged: {error}") from None
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
