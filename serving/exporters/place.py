"""Where a release goes: the image that serves it, and where its files lie there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from pipelines.errors import BadInput
from serving.release import Release

PORT = 8000
MODELS = "/mnt/models"
"""Folder in the container below which models are."""


@dataclass(frozen=True)
class Claim:
    """A persistent volume claim with the files of a release; how they get there is the cluster's business."""

    name: str
    path: str = ""
    """Of the model's folder within the volume."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME` or `NAME/PATH`.

        Raises:
            BadInput: It is neither.
        """
        name, _, path = text.partition("/")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or ".." in path.split("/"):
            raise BadInput(f"{text!r} is no persistent volume claim; write NAME or NAME/PATH, such as models/qwen-int8")
        return cls(name, path.strip("/"))

    @property
    def uri(self) -> str:
        """As KServe names it."""
        return f"pvc://{self.name}/{self.path}".rstrip("/")

    @property
    def folder(self) -> str:
        """Of the model, where the whole volume is mounted."""
        return f"{MODELS}/{self.path}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a release does not know."""

    image: str
    """Of the container, `REPOSITORY:TAG`; its entry point does not matter."""

    claim: Claim | None = None
    """Needed by all that run in a cluster."""

    def in_cluster(self) -> Claim:
        """The claim.

        Raises:
            BadInput: There is none.
        """
        if self.claim is None:
            raise BadInput(
                "a cluster does not see this machine's disks; copy the model's folder to a persistent volume and name "
                "it by --claim NAME/PATH"
            )
        return self.claim


def vllm_image(release: Release) -> str:
    """The image that vLLM publishes of the release's version.

    Raises:
        BadInput: It is for cards.
    """
    if release.resources.device == "cpu":
        raise BadInput("vLLM publishes its usual image for cards, and this release is for a CPU; name one by --image")
    return f"vllm/vllm-openai:v{release.engine.version}"
