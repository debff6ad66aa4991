"""What an evaluation measures: models on disk, each with the digest that names it and the scheme that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.artifacts import BaseSnapshot
from pipelines.exported import QuantizedModel
from pipelines.parity import Parity
from pipelines.system.manifest import verify_manifest
from serving.adapter import LoraAdapter, read_adapter


@dataclass(frozen=True)
class Subject:
    """A model to be measured."""

    name: Literal["base", "merged", "candidate", "champion"]
    path: Path
    digest: str
    scheme: str
    manifest: Path | None = None
    """Folder of its manifest, if another."""

    parity: Parity | None = None
    """What its predictions are compared with, if anything."""

    adapter: LoraAdapter | None = None
    """What is served on the model, as it will be in service."""

    @property
    def own_digest(self) -> str:
        """Of the manifest of what is judged."""
        return self.digest if self.adapter is None else self.adapter.digest

    def verify(self) -> None:
        """Check every file.

        Raises:
            ManifestMismatch: One is missing, added or changed.
        """
        verify_manifest(self.path, self.digest, kept_in=self.manifest)
        if self.adapter is not None:
            verify_manifest(self.adapter.path, self.adapter.digest)


def subjects(base: BaseSnapshot, model: QuantizedModel) -> tuple[Subject, ...]:
    """What a run brings to be measured, in this order."""
    found = [_unadapted(base, model)]
    if model.merged_path is not None and model.merged_digest is not None:
        found.append(Subject("merged", model.merged_path, model.merged_digest, "bf16"))
    return (*found, _candidate(model))


def _candidate(model: QuantizedModel) -> Subject:
    if model.served_base_path is None or model.served_base_digest is None:
        return Subject("candidate", model.path, model.digest, model.scheme, parity=model.parity)
    return Subject(
        "candidate",
        model.served_base_path,
        model.served_base_digest,
        model.scheme,
        parity=model.parity,
        adapter=read_adapter(model.path, model.digest),
    )


def _unadapted(base: BaseSnapshot, model: QuantizedModel) -> Subject:
    """The base in the candidate's scheme: a card that serves the one can serve the other, and training is compared."""
    if model.quantized_base_path is None or model.quantized_base_digest is None:
        return Subject("base", base.path, base.digest, "bf16", base.manifest)
    return Subject("base", model.quantized_base_path, model.quantized_base_digest, model.scheme)
