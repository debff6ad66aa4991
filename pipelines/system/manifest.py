"""`manifest.json`: size and SHA-256 of every file of a folder, written last. A folder without one is not finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import VlmopsError
from pipelines.system.durable import sha256_file, write_text

NAME = "manifest.json"


class ManifestMismatch(VlmopsError):
    """A folder is not what its manifest says."""


def write_manifest(
    folder: Path, *, into: Path | None = None, about: Mapping[str, Mapping[str, object]] | None = None, **facts: object
) -> str:
    """Record every file of `folder` (recursively) and any further facts; return the manifest's digest.

    Args:
        folder: What is recorded.
        into: Where the manifest goes, when `folder` is not ours to write in.
        about: Further facts of some files. A `sha256` among them was taken while the file was written, and the file is
            not read again.
    """
    known = about or {}
    files = {
        name: {"size": path.stat().st_size, "sha256": "", **known.get(name, {})}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME and (name := str(path.relative_to(folder)))
    }
    for name, fact in files.items():
        fact["sha256"] = fact["sha256"] or sha256_file(folder / name)
    home = into or folder
    write_text(home / NAME, json.dumps({**facts, "files": files}, indent=1, sort_keys=True))
    return manifest_digest(home)


def read_manifest(folder: Path) -> dict[str, object]:
    """The manifest of `folder`.

    Raises:
        ManifestMismatch: There is none, so the folder was never finished.
    """
    path = folder / NAME
    if not path.is_file():
        raise ManifestMismatch(f"{folder} has no {NAME}: it was never finished; make it again")
    manifest: dict[str, object] = json.loads(path.read_text())
    return manifest


def manifest_digest(folder: Path) -> str:
    """The SHA-256 of the manifest: one name for the whole content of the folder."""
    read_manifest(folder)
    return sha256_file(folder / NAME)


def verify_manifest(folder: Path, expected_digest: str | None = None, *, kept_in: Path | None = None) -> None:
    """Check every file against the manifest, and the manifest against the digest that was handed on.

    Args:
        folder: What is checked.
        expected_digest: Of the manifest.
        kept_in: Where the manifest is, when `folder` was not ours to write in.

    Raises:
        ManifestMismatch: A file is missing, added or changed, or the manifest is another one.
    """
    files = read_manifest(kept_in or folder)["files"]
    assert isinstance(files, dict)
    if expected_digest is not None and manifest_digest(kept_in or folder) != expected_digest:
        raise ManifestMismatch(f"{folder} has another manifest than the {expected_digest[:12]} that was handed on")
    here = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != NAME}
    if here != set(files):
        raise ManifestMismatch(
            f"{folder}: files missing {sorted(set(files) - here)}, unknown {sorted(here - set(files))}"
        )
    for name, fact in files.items():
        path = folder / name
        if path.stat().st_size != fact["size"] or sha256_file(path) != fact["sha256"]:
            raise ManifestMismatch(f"{path} is not the file that was written: size or SHA-256 differ; make it again")


def text_digest(*texts: str) -> str:
    """The SHA-256 of texts, each length-prefixed so that no two lists of texts collide."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
