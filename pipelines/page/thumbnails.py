"""Images small enough to lie in the page."""

from __future__ import annotations

import base64
import io
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

DAMAGE = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on a damaged file."""

SIDE = 288
"""Longest side in pixels: twice what is shown, for screens with fine dots."""

LOSSLESS_PIXELS = 128 * 128
"""Up to here PNG is as small as JPEG, and keeps every pixel."""


@dataclass(frozen=True)
class Thumbnail:
    """An image of a question."""

    url: str | None
    """`data:`, or None where the file is not there any more, or cannot be read."""

    width: int
    height: int
    small: bool
    """Drawn larger than it is, so that its pixels are better seen than blurred."""


def thumbnail(path: Path) -> Thumbnail:
    """An image shrunk and turned as a camera meant it, without what else its file says, such as a place."""
    image = _shrunk(path)
    if image is None:
        return Thumbnail(None, SIDE, SIDE, small=False)
    lossless = image.width * image.height <= LOSSLESS_PIXELS
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=82)
    data = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(
        f"data:image/{'png' if lossless else 'jpeg'};base64,{data}", image.width, image.height, small=lossless
    )


def _shrunk(path: Path) -> Image | None:
    """None where the file is gone, damaged or too large to be decoded."""
    from PIL import ImageOps
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    if not path.is_file():
        return None
    try:
        with open_image(path) as opened:
            image = _on_white(ImageOps.exif_transpose(opened))
    except (*DAMAGE, DecompressionBombError) as error:
        log.warning("the report does not show %s: %s", path, error)
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def _on_white(image: Image) -> Image:
    """In RGB; what is transparent becomes white."""
    from PIL.Image import alpha_composite, new

    rgba = image.convert("RGBA")
    return alpha_composite(new("RGBA", rgba.size, "white"), rgba).convert("RGB")
