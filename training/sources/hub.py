"""`hf://organisation/name@commit`: the Hugging Face hub, or a mirror that speaks its language."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from pipelines.errors import SourceRefused
from pipelines.model_source import Source
from pipelines.settings import Hubs
from training.sources.connection import Address, Connection, WaysOut, sendable
from training.sources.published import PublishedFile, needed


class _Lfs(BaseModel):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    blob: str | None = Field(None, alias="blobId", pattern="^[0-9a-f]{40}$")
    lfs: _Lfs | None = None


class _Model(BaseModel):
    sha: str
    siblings: list[_Sibling]


class Hub:
    """One model on the hub."""

    def __init__(self, source: Source, hubs: Hubs) -> None:
        self._source = source
        self._endpoint = hubs.hf_endpoint.rstrip("/")
        self._headers = {}
        if hubs.hf_token is not None:
            self._headers["Authorization"] = f"Bearer {sendable(hubs.hf_token, 'HF_TOKEN')}"
        page = f"{self._endpoint}/{source.place}"
        self.ways_out = WaysOut(
            no_access=f"accept the licence on {page} if it asks for that, and set HF_TOKEN to a token that may read it",
            not_there=f"`git ls-remote {page}` prints the commits there are; a private model also needs HF_TOKEN",
        )

    def files(self, connection: Connection) -> list[PublishedFile]:
        """What the model needs, with the SHA-256 of large files and git's hash of small ones.

        Raises:
            SourceRefused: The listing cannot be used.
        """
        url = f"{self._endpoint}/api/models/{self._source.place}/revision/{self._source.revision}?blobs=true"
        try:
            model = _Model.model_validate_json(connection.get(str(self._source), Address(url, self._headers)))
        except ValidationError as error:
            raise SourceRefused(
                f"{self._source}: {self._endpoint} answers no listing of a model ({error.error_count()} problem(s)); "
                f"set HF_ENDPOINT to a Hugging Face hub"
            ) from None
        if model.sha != self._source.revision:
            raise SourceRefused(f"{self._source}: {self._endpoint} answers for commit {model.sha}; use another mirror")
        siblings = {sibling.rfilename: sibling for sibling in model.siblings}
        return [self._file(siblings[path]) for path in needed(siblings, str(self._source))]

    def address(self, path: str) -> Address:
        """Of one file."""
        return Address(
            f"{self._endpoint}/{self._source.place}/resolve/{self._source.revision}/{quote(path)}", self._headers
        )

    def _file(self, sibling: _Sibling) -> PublishedFile:
        if sibling.lfs is not None:
            return PublishedFile(sibling.rfilename, sibling.lfs.size, "sha256", sibling.lfs.sha256)
        if sibling.blob is None or sibling.size is None:
            raise SourceRefused(
                f"{self._source}: {sibling.rfilename} is listed without size and hash; use another mirror"
            )
        return PublishedFile(sibling.rfilename, sibling.size, "git-sha1", sibling.blob)
