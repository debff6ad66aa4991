"""An adapter that is served on a base, and the files of a version, whether it is one or a whole model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.artifacts import ModelVersion
from pipelines.errors import BadInput
from pipelines.system.manifest import read_manifest, verify_manifest


class Loading(BaseModel):
    """What an engine must be told of an adapter; the export wrote it into the adapter's manifest, as `lora`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rank: int
    """Value of `--max-lora-rank`."""

    experts: bool
    """Whether it updates experts, in stacks."""

    vision: bool
    """Whether it updates what turns patches into visual tokens."""


class LoraAdapter(BaseModel):
    """An adapter on disk, in the layout that vLLM serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    digest: str
    """Of its manifest."""

    loading: Loading

    def room(self) -> list[str]:
        """Flags of an engine that has a place for such an adapter.

        One place: the next adapter takes it once the engine is idle, and a second one would cost the memory of an
        adapter more.
        """
        flags = ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(self.loading.max_rank)]
        return [*flags, "--enable-tower-connector-lora"] if self.loading.vision else flags

    def flags(self, name: str) -> list[str]:
        """Flags of an engine that serves this one from its start."""
        module = {"name": name, "path": str(self.path), **self._stacks()}
        return [*self.room(), "--lora-modules", json.dumps(module)]

    def request(self, name: str) -> dict[str, object]:
        """Body of `POST /v1/load_lora_adapter`.

        Without `load_inplace`: vLLM keeps that word with the adapter and reads its files again at every step, up to
        0.32 at least.
        """
        return {"lora_name": name, "lora_path": str(self.path), **self._stacks()}

    def _stacks(self) -> dict[str, object]:
        return {"is_3d_lora_weight": True} if self.loading.experts else {}


@dataclass(frozen=True)
class Files:
    """What a version is made of."""

    model: Path
    digest: str
    """Of the model's manifest."""

    adapter: LoraAdapter | None
    """None where the model is the version itself."""

    def verify(self) -> None:
        """Check every file.

        Raises:
            ManifestMismatch: One is missing, added or changed.
        """
        verify_manifest(self.model, self.digest)
        if self.adapter is not None:
            verify_manifest(self.adapter.path, self.adapter.digest)


def files_of(version: ModelVersion) -> Files:
    """The files of a registered version.

    Raises:
        BadInput: They are not on this machine's disks.
        ManifestMismatch: Its adapter was never finished.
    """
    own = _folder(version, version.uri)
    if version.base_uri is None or version.base_digest is None:
        return Files(own, version.digest, None)
    return Files(_folder(version, version.base_uri), version.base_digest, read_adapter(own, version.digest))


def read_adapter(folder: Path, digest: str) -> LoraAdapter:
    """An exported adapter, by its manifest.

    Raises:
        BadInput: It was not exported to be served.
        ManifestMismatch: It was never finished.
    """
    try:
        loading = Loading.model_validate(read_manifest(folder).get("lora"))
    except ValidationError:
        raise BadInput(
            f"{folder}: its manifest does not say how to serve it; export the adapter again (export.artifact adapter, "
            f"or vlmops export --adapter-only)"
        ) from None
    return LoraAdapter(path=folder, digest=digest, loading=loading)


def _folder(version: ModelVersion, uri: str) -> Path:
    address = urlparse(uri)
    if address.scheme != "file":
        raise BadInput(f"version {version.version} lies at {uri}; only file:// can be served")
    return Path(unquote(address.path))
