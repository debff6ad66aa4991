"""What a hub or a bucket publishes about a model's files, and which of them a model needs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from pipelines.errors import SourceRefused
from pipelines.system.manifest import NAME, text_digest
from training.sources.safety import PICKLES

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)

Algorithm = Literal["sha256", "git-sha1", "md5"]
"""`git-sha1` is the id that git gives a blob: small files on the Hugging Face hub have no other."""

WEIGHTS = ".safetensors"
ENDINGS = {".json", ".txt", ".model", ".jinja"}
PAPERS = ("LICENSE", "LICENCE", "NOTICE", "README")


@dataclass(frozen=True)
class PublishedFile:
    """One file of a model, as its publisher describes it."""

    path: str
    """Relative to the model's folder, with forward slashes."""

    size: int
    """Bytes."""

    algorithm: Algorithm
    digest: str
    """Lower-case hex."""

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors; everything else is fetched and checked before."""
        return self.path.endswith(WEIGHTS)

    def hasher(self) -> _Hash:
        """A hash that has seen nothing yet of the file."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        if self.algorithm == "md5":
            return hashlib.md5(usedforsecurity=False)
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def fingerprint(files: Iterable[PublishedFile]) -> str:
    """40 hex digits that change when any of the files does: the revision of a place that has none."""
    facts = (f"{file.path} {file.size} {file.algorithm} {file.digest}" for file in files)
    return text_digest(*sorted(facts))[:40]


def needed(paths: Iterable[str], source: str) -> list[str]:
    """The files that a model needs, of all that are published.

    Raises:
        SourceRefused: A path would leave the folder, or there are no safetensors.
    """
    published = sorted(paths)
    for path in published:
        refuse_path(path, source)
    wanted = [path for path in published if _is_needed(PurePosixPath(path))]
    skipped = [path for path in published if path not in wanted]
    pickles = [path for path in skipped if PurePosixPath(path).suffix.lower() in PICKLES]
    if not any(path.endswith(WEIGHTS) for path in wanted):
        held = f", only pickled ones, which can run code ({pickles[0]})" if pickles else ""
        raise SourceRefused(
            f"{source}: no *.safetensors weights{held}; use a revision with safetensors, or convert it on an isolated "
            f"machine and name the result with file://"
        )
    if skipped:
        log.info("%s: left out, because no model needs them: %s", source, ", ".join(skipped))
    return wanted


def refuse_path(path: str, source: str) -> None:
    """Refuse a listed path that could be written outside the folder.

    Raises:
        SourceRefused: The path is absolute, climbs, or holds what is no part of a file's name.
    """
    odd = "\\" in path or any(ord(character) < 32 for character in path)
    if odd or any(part in {"", ".", ".."} for part in path.split("/")):
        raise SourceRefused(f"{source}: the listed path {path!r} leaves the model's folder; do not use this source")


def _is_needed(path: PurePosixPath) -> bool:
    if path.name == NAME or any(part.startswith(".") for part in path.parts):
        return False
    if path.suffix == WEIGHTS:
        return len(path.parts) == 1  # copies for other frameworks lie in folders
    return path.suffix in ENDINGS or path.name.startswith(PAPERS)
