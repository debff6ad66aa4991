"""Images as they are sent."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageChops, ImageOps, ImageStat, PngImagePlugin

from pipelines.errors import BadInput
from serving.pictures import LONGEST_ASPECT, Picture, fitted, shrink

sides = st.integers(1, 200_000)
caps = st.integers(1024, 16_000_000)


def read(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.data))


def scan(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture of which no two corners are alike."""
    across, down = Image.linear_gradient("L").rotate(90).resize(size), Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (across, down, ImageChops.invert(down)))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels, of 255."""
    means = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean
    return sum(means) / len(means)


@given(sides, sides, caps)
def test_the_cap_holds_the_aspect_is_kept_and_nothing_grows(width: int, height: int, cap: int) -> None:
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        return
    small, low = fitted((width, height), cap)
    assert small * low <= cap or (small, low) == (width, height)
    assert 1 <= small <= width
    assert 1 <= low <= height
    if width * height > cap:
        scale = (cap / (width * height)) ** 0.5  # both sides are within a pixel of the exact ones
        assert abs(small - width * scale) <= 1
        assert abs(low - height * scale) <= 1
    else:
        assert (small, low) == (width, height)


@given(sides, sides, caps)
def test_what_fits_is_shrunk_no_further(width: int, height: int, cap: int) -> None:
    if max(width, height) <= LONGEST_ASPECT * min(width, height):
        once = fitted((width, height), cap)
        assert fitted(once, cap) == once


@settings(max_examples=300, deadline=None)
@given(st.integers(64, 8000), st.floats(0.25, 4), st.integers(65_536, 4_000_000))
def test_the_engine_sees_it_as_large_as_the_original_to_a_row_of_tokens(width: int, aspect: float, cap: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    def looked_at(size: tuple[int, int]) -> tuple[int, ...]:
        down, across = smart_resize(size[1], size[0], factor=32, min_pixels=4096, max_pixels=cap)
        return across // 32, down // 32

    size = width, round(width * aspect)
    sent, original = looked_at(fitted(size, cap)), looked_at(size)
    assert max(abs(one - other) for one, other in zip(sent, original, strict=True)) <= 1
    assert sent[0] * sent[1] * 1024 <= cap


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.integers(1, 8),
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    cap=st.integers(1024, 9000),
)
def test_it_is_shown_as_a_viewer_shows_it(orientation: int, width: int, height: int, kind: str, cap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        exif[ExifTags.Base.Make] = "a camera"
        scan((width, height)).save(path, kind, exif=exif, quality=95)
        sent = read(shrink(path, cap))
        upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert sent.size == fitted(upright.size, cap)
        assert not sent.getexif()
        assert difference(sent, upright.resize(sent.size, Image.Resampling.BICUBIC)) < 6


def test_nothing_but_pixels_is_sent(tmp_path: Path) -> None:
    secret = b"47.3769 N, 8.5417 E"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", secret.decode())
    scan().save(tmp_path / "scan.png", pnginfo=text, icc_profile=secret)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = secret.decode()
    scan().save(tmp_path / "scan.jpg", exif=exif, comment=secret, icc_profile=secret)
    for name in ("scan.png", "scan.jpg"):
        assert secret in (tmp_path / name).read_bytes()
        sent = shrink(tmp_path / name, 10_000)
        assert secret not in sent.data
        assert sent.size == (60, 40)


def test_a_plain_file_that_fits_is_sent_as_it_is(tmp_path: Path) -> None:
    for name, kind in (("scan.png", "PNG"), ("scan.jpg", "JPEG")):
        scan().save(tmp_path / name, quality=70)
        sent = shrink(tmp_path / name, 2400)
        assert (sent.data, sent.kind) == ((tmp_path / name).read_bytes(), kind)
        assert sent.url.startswith(f"data:image/{kind.lower()};base64,")


def test_lossless_stays_lossless_and_jpeg_stays_jpeg(tmp_path: Path) -> None:
    scan().save(tmp_path / "scan.webp", lossless=True)
    sent = shrink(tmp_path / "scan.webp", 10_000)
    assert sent.kind == "PNG"
    assert difference(read(sent), scan()) == 0
    scan((400, 300)).save(tmp_path / "large.jpg")
    assert shrink(tmp_path / "large.jpg", 10_000).kind == "JPEG"


def test_transparent_is_white_and_an_animation_its_first_frame(tmp_path: Path) -> None:
    glass = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    glass.save(tmp_path / "glass.png")
    assert read(shrink(tmp_path / "glass.png", 10_000)).getpixel((5, 5)) == (255, 255, 255)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("blue", "lime")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read(shrink(tmp_path / "moving.webp", 10_000)).getpixel((5, 5)) == (0, 0, 255)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(BadInput, match="too large to decode"):
        shrink(tmp_path / "bomb.png", 10_000)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    scan((300, 300)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    Image.new("RGB", (402, 2)).save(tmp_path / "strip.png")
    Image.new("I;16", (40, 40)).save(tmp_path / "deep.png")
    scan().save(tmp_path / "scan.gif")
    for name, why in (
        ("none.png", "no such image"),
        ("text.png", "no image that can be asked about"),
        ("scan.gif", "no image that can be asked about"),
        ("cut.jpg", "damaged"),
        ("strip.png", "402 x 2 pixels"),
        ("deep.png", "more than 8 bits"),
    ):
        with pytest.raises(BadInput, match=why):
            shrink(tmp_path / name, 10_000)
