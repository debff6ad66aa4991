"""Where an image may be: below the source's folder or in the row, never behind a link or a URL."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training.chat import references
from training.chat.references import read_image
from training.chat.rejects import Unusable


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a b.png").write_bytes(b"picture")
    (tmp_path / "outside.png").write_bytes(b"secret")
    return folder


@pytest.mark.parametrize("reference", ["images/a b.png", "./images/../images/a b.png", b"picture"])
def test_an_image_of_the_folder_or_of_the_row_is_read(reference: str | bytes, source: Path) -> None:
    assert read_image(reference, source).content == b"picture"


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_uri_below_the_folder_is_read(host: str, source: Path) -> None:
    assert read_image(f"file://{host}{source}/images/a%20b.png", source).content == b"picture"


@pytest.mark.parametrize(
    ("reason", "reference"),
    [
        ("missing image", "images/b.png"),
        ("missing image", "images"),
        ("missing image", "images/a b.png/c.png"),
        ("unreadable image", "x" * 5000),
        ("image outside the folder", "../outside.png"),
        ("image outside the folder", "images/../../outside.png"),
        ("image outside the folder", "/etc/passwd"),
        ("image outside the folder", "file:///etc/passwd"),
        ("image outside the folder", "file://elsewhere/a.png"),
        ("image outside the folder", "a\0b.png"),
        ("image by URL", "http://127.0.0.1/a.png"),
        ("image by URL", "s3://bucket/a.png"),
        ("image by URL", "https://[broken"),
        ("bad data URI", "data:text/html;base64,AAAA"),
        ("bad data URI", "data:image/png;base64,AAA"),
        ("bad data URI", "data:image/png;base64,A*AA"),
    ],
)
def test_anything_else_is_refused_with_its_reason(reason: str, reference: str, source: Path) -> None:
    with pytest.raises(Unusable) as unusable:
        read_image(reference, source)
    assert unusable.value.reason == reason


@pytest.mark.parametrize("target", ["../outside.png", "images/a b.png"])
def test_a_link_is_not_followed_wherever_it_points(target: str, source: Path) -> None:
    (source / "link.png").symlink_to(target)
    with pytest.raises(Unusable, match="symbolic link"):
        read_image("link.png", source)


def test_a_linked_folder_is_not_followed(source: Path, tmp_path: Path) -> None:
    (source / "linked").symlink_to(tmp_path)
    with pytest.raises(Unusable, match="symbolic link"):
        read_image("linked/outside.png", source)


def test_a_pipe_is_no_image_and_is_not_waited_for(source: Path) -> None:
    os.mkfifo(source / "pipe.png")
    with pytest.raises(Unusable, match="missing image"):
        read_image("pipe.png", source)


def test_a_huge_file_is_refused_unread(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_BYTES", 3)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    with pytest.raises(Unusable, match="image too large"):
        read_image("images/a b.png", source)


def test_what_is_shown_of_a_url_holds_no_secret(source: Path) -> None:
    with pytest.raises(Unusable) as unusable:
        read_image("https://user:password@host.example/a.png?signature=secret", source)
    assert "https://host.example/a.png" in str(unusable.value)
    assert "password" not in str(unusable.value)
    assert "secret" not in str(unusable.value)
