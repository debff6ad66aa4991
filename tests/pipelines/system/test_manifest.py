"""A manifest finds every change of a folder, and a folder without one was never finished."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.system.manifest import (
    ManifestMismatch,
    manifest_digest,
    read_manifest,
    text_digest,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "sub" / "config.json").write_text("{}")
    write_manifest(tmp_path, scheme="int8_w8a8")
    return tmp_path


def test_an_untouched_folder_is_accepted(folder: Path) -> None:
    verify_manifest(folder, manifest_digest(folder))
    assert read_manifest(folder)["scheme"] == "int8_w8a8"


def test_a_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestMismatch, match=r"model\.safetensors"):
        verify_manifest(folder)


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "sub" / "config.json").unlink()
    with pytest.raises(ManifestMismatch, match=r"missing \['sub/config.json'\]"):
        verify_manifest(folder)


def test_an_added_file_is_found(folder: Path) -> None:
    (folder / "pickle.bin").write_bytes(b"")
    with pytest.raises(ManifestMismatch, match=r"unknown \['pickle.bin'\]"):
        verify_manifest(folder)


def test_another_manifest_is_found(folder: Path) -> None:
    digest = manifest_digest(folder)
    write_manifest(folder, scheme="bf16")
    with pytest.raises(ManifestMismatch, match="another manifest"):
        verify_manifest(folder, digest)


def test_a_folder_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="never finished"):
        verify_manifest(tmp_path)


@given(st.lists(st.text()), st.lists(st.text()))
def test_only_equal_texts_have_equal_digests(left: list[str], right: list[str]) -> None:
    try:
        same = text_digest(*left) == text_digest(*right)
    except UnicodeEncodeError:
        return
    assert same == (left == right)


def test_a_manifest_may_be_kept_elsewhere(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    (theirs / "model.safetensors").write_bytes(b"w")
    digest = write_manifest(theirs, into=ours)
    assert [path.name for path in theirs.iterdir()] == ["model.safetensors"]
    verify_manifest(theirs, digest, kept_in=ours)
    (theirs / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ManifestMismatch, match=r"model\.safetensors"):
        verify_manifest(theirs, digest, kept_in=ours)
