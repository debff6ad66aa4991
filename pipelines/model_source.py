"""`model.source`: where a base model comes from, and what pins it. A branch moves, so no branch is a source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\\@]+)+", re.ASCII)

CLONES = {"hf": "https://huggingface.co/{}", "modelscope": "https://www.modelscope.cn/{}.git"}
"""Schemes that are pinned by a commit, and where `git ls-remote` finds it."""


@dataclass(frozen=True)
class Source:
    """A model source, taken apart."""

    scheme: str
    place: str
    """Repository, bucket and prefix, folder, or name of a built-in model."""

    revision: str | None
    """40 hex digits: a commit, or of a bucket the digest of its listing; None where nothing is named."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str) -> Source:
    """Take a source apart.

    Raises:
        ValueError: It names no model, or one that nothing pins; says how to pin it.
    """
    scheme, _, place = text.partition("://")
    if scheme in CLONES:
        return _repository(scheme, place)
    if scheme == "s3":
        return _bucket(place)
    return Source(scheme, place, None)


def _repository(scheme: str, place: str) -> Source:
    name, _, revision = place.partition("@")
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"{name!r} names no repository; write {scheme}://organisation/name@commit")
    if not COMMIT.fullmatch(revision):
        seen = f"{revision!r} can move" if revision else "no commit is named"
        raise ValueError(
            f"{seen}: a base is pinned by the 40 hex digits of a commit, {scheme}://{name}@<commit>; "
            f"`git ls-remote {CLONES[scheme].format(name)}` prints the commit of every branch"
        )
    return Source(scheme, name, revision)


def _bucket(place: str) -> Source:
    name, _, revision = place.partition("@")
    name = name.rstrip("/")
    if not BUCKET.fullmatch(name) or ".." in name.split("/"):
        raise ValueError(
            f"{name!r} names no folder of a bucket; write s3://bucket/folder or s3://bucket/folder@<digest>"
        )
    if "@" in place and not COMMIT.fullmatch(revision):
        raise ValueError(
            f"{revision!r} pins nothing: write the 40 hex digits that a first download reports, or nothing"
        )
    return Source("s3", name, revision or None)


def _checked(text: str) -> str:
    parse_source(text)
    return text


ModelSource = Annotated[str, Field(pattern=r"^(builtin|file|hf|modelscope|s3)://.+"), AfterValidator(_checked)]
"""A source as it stands in a config."""
