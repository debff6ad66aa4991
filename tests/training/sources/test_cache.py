"""A finished model is used again at a glance, and looked at closely where something has touched it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipelines.model_source import Source
from pipelines.system.manifest import NAME, write_manifest
from training.sources import cache as module
from training.sources.cache import folder_of, is_whole, reopened


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "below" / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    return folder


def later(path: Path) -> None:
    """Let a file look younger than the manifest."""
    os.utime(path, ns=(0, (path.parent / NAME).stat().st_mtime_ns + 1))


def test_an_untouched_folder_is_not_hashed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "verify_manifest")
    assert is_whole(finished)


def test_a_touched_folder_is_hashed_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(finished / "config.json")
    assert is_whole(finished)
    monkeypatch.delattr(module, "verify_manifest")
    assert is_whole(finished)


def test_a_changed_file_is_found_and_named(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    (finished / "config.json").write_text("[]")
    later(finished / "config.json")
    with caplog.at_level(logging.WARNING):
        assert not is_whole(finished)
    assert "config.json is not the file that was written" in caplog.text


@pytest.mark.parametrize("spoil", ["shorten", "delete", "add", "unfinished"])
def test_a_folder_of_other_files_is_not_whole(spoil: str, finished: Path) -> None:
    if spoil == "shorten":
        (finished / "config.json").write_text("")
    elif spoil == "delete":
        (finished / "config.json").unlink()
    elif spoil == "add":
        (finished / "more.json").touch()
    else:
        (finished / NAME).unlink()
    assert not is_whole(finished)


def test_what_is_reopened_keeps_the_model_and_nothing_else(finished: Path) -> None:
    (finished / ".config.json.partial").touch()
    (finished / "stranger.bin").touch()
    (finished / "link.json").symlink_to("/etc/hostname")
    partial = reopened(finished, {"config.json", "below/model.safetensors", "link.json"})
    assert not finished.exists()
    kept = {str(path.relative_to(partial)) for path in partial.rglob("*") if not path.is_dir()}
    assert kept == {"config.json", "below/model.safetensors", ".config.json.partial"}


@pytest.mark.parametrize(
    ("place", "name"),
    [("org/name.v2", "org--name.v2"), ("bucket/a b/c", "bucket--a--b--c"), ("b/" + "x" * 300, "x" * 120)],
)
def test_a_folder_is_named_for_its_source(place: str, name: str) -> None:
    assert folder_of(Path("cache"), Source("s3", place, None), "0" * 40) == Path(f"cache/bases/s3-{name}@{'0' * 40}")
