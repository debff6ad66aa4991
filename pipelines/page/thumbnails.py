"""Images small enough to lie in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 288
"""Longest side in pixels: twice what is shown, for screens with fine dots."""

LOSSLESS_PIXELS = 128 * 128
"""Up to here PNG is as small as JPEG, and keeps every pixel."""


@dataclass(frozen=True)
class Thumbnail:
    """An image of a question."""

    url: str | None
    """`data:`, or None where the file is not there any more."""

    width: int
    height: int
    small: bool
    """Drawn larger than it is, so that its pixels are better seen than blurred."""


def thumbnail(path: Path) -> Thumbnail:
    """An image shrunk and turned as a camera meant it, without what else its file says, such as a place."""
    from PIL import Image, ImageOps

    if not path.is_file():
        return Thumbnail(None, SIDE, SIDE, small=False)
    with Image.open(path) as opened:
        image = _on_white(ImageOps.exif_transpose(opened))
    image.thumbnail((SIDE, SIDE))
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


def _on_white(image: Image) -> Image:
    """In RGB; what is transparent becomes white."""
    from PIL.Image import alpha_composite, new

    rgba = image.convert("RGBA")
    return alpha_composite(new("RGBA", rgba.size, "white"), rgba).convert("RGB")
