"""A base is known by its manifest or by its bytes, and by the digest that a run took of it where it lay."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ExportRejected
from pipelines.system.manifest import NAME, manifest_digest, write_manifest
from training.provenance import hashed, require_same_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights").write_bytes(b"w" * 1000)
    return folder


def adapter_of(folder: Path, digest: str) -> Path:
    folder.mkdir()
    (folder / "weights").write_bytes(b"l")
    write_manifest(folder, base=digest)
    return folder


def test_a_base_with_a_manifest_is_known_by_it(base: Path, tmp_path: Path) -> None:
    digest = write_manifest(base, source="hf://a/b", about={"config.json": {"note": 1}})
    assert require_same_base(base, adapter_of(tmp_path / "adapter", digest)) == digest


def test_a_base_that_was_used_where_it_lay_is_known_by_its_files(base: Path, tmp_path: Path) -> None:
    """`download` takes such a digest of a `file://` base, whether or not the folder has a manifest of its own."""
    where_it_lay = hashed(base)
    adapter = adapter_of(tmp_path / "adapter", where_it_lay)
    assert require_same_base(base, adapter) == where_it_lay
    write_manifest(base, source="hf://a/b", about={"config.json": {"note": 1}})
    assert require_same_base(base, adapter) == where_it_lay
    assert manifest_digest(base) != where_it_lay


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "adapter", hashed(base))
    (base / "part" / "weights").write_bytes(b"v" * 1000)
    with pytest.raises(ExportRejected, match="was trained on base"):
        require_same_base(base, adapter)


def test_nothing_is_hashed_for_an_adapter_that_records_nothing(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert require_same_base(base, tmp_path / "adapter") is None
    assert not (base / NAME).exists()
