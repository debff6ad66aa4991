"""One image file: accepted as it is, stored anew so that every reader sees the same, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from training.builtin.drawings import draw_many
from training.chat.pictures import MAX_PIXELS, Picture, store_picture
from training.chat.references import ImageFile
from training.chat.rejects import Unusable

PICTURE = draw_many({"shapes": 1}, 0)[0].image


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def _store(file: Path, store: Path) -> Picture:
    return store_picture(ImageFile(file.read_bytes(), str(file)), store)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_plain_image_is_stored_byte_for_byte(kind: str, tmp_path: Path, store: Path) -> None:
    file = tmp_path / f"x.{kind}"
    PICTURE.save(file)
    assert (store / _store(file, store).name).read_bytes() == file.read_bytes()


def test_the_same_picture_in_two_formats_has_the_same_digest(tmp_path: Path, store: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "a.webp", lossless=True)
    first, second = (_store(tmp_path / name, store) for name in ("a.png", "a.webp"))
    assert first.pixels == second.pixels
    assert first.name != second.name


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "RGBA", "LA"])
def test_an_image_that_readers_take_differently_is_stored_as_rgb(mode: str, tmp_path: Path, store: Path) -> None:
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    PICTURE.convert(mode).save(file)
    with Image.open(store / _store(file, store).name) as stored:
        assert (stored.mode, stored.format, stored.size) == ("RGB", "PNG", PICTURE.size)


def test_what_is_transparent_becomes_white_as_in_the_engine(tmp_path: Path, store: Path) -> None:
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(tmp_path / "x.png")
    with Image.open(store / _store(tmp_path / "x.png", store).name) as stored:
        assert stored.getpixel((5, 5)) == (255, 255, 255)


def test_a_photo_taken_sideways_is_turned(tmp_path: Path, store: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.resize((40, 80)).save(tmp_path / "x.jpg", exif=exif)
    picture = _store(tmp_path / "x.jpg", store)
    assert picture.size == (80, 40)
    with Image.open(store / picture.name) as stored:
        assert stored.size == (80, 40)
        assert not stored.getexif()


def _truncated(file: Path) -> None:
    PICTURE.save(file, "PNG")
    file.write_bytes(file.read_bytes()[:-100])


def _bomb(file: Path) -> None:
    # A header that promises far more pixels than memory holds, and hardly any data.
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _large(file: Path) -> None:
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(file, "PNG")


def _sixteen_bit(file: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(file, "PNG")


FAULTS: dict[str, Callable[[Path], object]] = {
    "not an image": lambda file: file.write_text("hello"),
    "truncated image": _truncated,
    "image too large": _bomb,
    "unsupported image mode": _sixteen_bit,
}


@pytest.mark.parametrize(("reason", "spoil"), [*FAULTS.items(), ("image too large", _large)])
def test_a_bad_image_is_refused_with_its_reason(
    reason: str, spoil: Callable[[Path], object], tmp_path: Path, store: Path
) -> None:
    file = tmp_path / "x.png"
    spoil(file)
    with pytest.raises(Unusable) as unusable:
        _store(file, store)
    assert unusable.value.reason == reason
    assert str(file) in unusable.value.detail
    assert not list(store.iterdir())


def test_a_bomb_is_never_decoded(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _large(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(Unusable):
        _store(tmp_path / "x.png", store)


def test_other_formats_are_not_even_tried(tmp_path: Path, store: Path) -> None:
    PICTURE.save(tmp_path / "x.png", "BMP")
    with pytest.raises(Unusable, match="not an image"):
        _store(tmp_path / "x.png", store)


def _file(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, exif=exif)
    return buffer.getvalue()


FILES = [_file(kind) for kind in ("PNG", "JPEG", "WEBP")]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own word on damaged EXIF blocks
@given(data=st.data())
def test_damage_anywhere_gives_a_picture_or_a_reason_and_nothing_else(data: st.DataObject, store: Path) -> None:
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)):
        content[place % len(content)] = value
    kept = data.draw(st.integers(0, len(content)))
    reason = None
    try:
        store_picture(ImageFile(bytes(content[:kept]), "damaged"), store)
    except Unusable as error:
        reason = error.reason
    assert reason in {None, "not an image", "truncated image", "image too large", "unsupported image mode"}
