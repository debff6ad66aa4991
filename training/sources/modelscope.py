"""`modelscope://organisation/name@commit`: ModelScope, or a mirror of it."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from pipelines.errors import SourceRefused
from pipelines.model_source import Source
from pipelines.settings import Hubs
from training.sources.connection import Address, Connection, WaysOut, sendable
from training.sources.published import PublishedFile, needed


class _File(BaseModel):
    path: str = Field(alias="Path")
    kind: str = Field(alias="Type")
    size: int = Field(alias="Size")
    sha256: str = Field("", alias="Sha256")


class _Files(BaseModel):
    files: list[_File] = Field(alias="Files")


class _Answer(BaseModel):
    data: _Files = Field(alias="Data")


class ModelScope:
    """One model on ModelScope."""

    def __init__(self, source: Source, hubs: Hubs) -> None:
        self._source = source
        self._endpoint = hubs.modelscope_endpoint.rstrip("/")
        self._headers = {}
        if hubs.modelscope_api_token is not None:
            token = sendable(hubs.modelscope_api_token, "MODELSCOPE_API_TOKEN")
            # Older parts of the API know the session cookie only.
            self._headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
        page = f"{self._endpoint}/models/{source.place}"
        self.ways_out = WaysOut(
            no_access=f"ask for access on {page}, and set MODELSCOPE_API_TOKEN to a token that may read it",
            not_there=f"`git ls-remote {self._endpoint}/{source.place}.git` prints the commits there are; "
            f"a private model also needs MODELSCOPE_API_TOKEN",
        )

    def files(self, connection: Connection) -> list[PublishedFile]:
        """What the model needs, with its SHA-256.

        Raises:
            SourceRefused: The listing cannot be used.
        """
        place, revision = self._source.place, self._source.revision
        url = f"{self._endpoint}/api/v1/models/{place}/repo/files?Revision={revision}&Recursive=true"
        try:
            answer = _Answer.model_validate_json(connection.get(str(self._source), Address(url, self._headers)))
        except ValidationError as error:
            raise SourceRefused(
                f"{self._source}: {self._endpoint} answers no listing of a model ({error.error_count()} problem(s)); "
                f"{self.ways_out.not_there}"
            ) from None
        files = {file.path: file for file in answer.data.files if file.kind == "blob"}
        return [self._file(files[path]) for path in needed(files, str(self._source))]

    def address(self, path: str) -> Address:
        """Of one file."""
        place, revision = self._source.place, self._source.revision
        return Address(f"{self._endpoint}/models/{place}/resolve/{revision}/{quote(path)}", self._headers)

    def _file(self, file: _File) -> PublishedFile:
        if not file.sha256:
            raise SourceRefused(f"{self._source}: {file.path} is published without a SHA-256; use another source")
        return PublishedFile(file.path, file.size, "sha256", file.sha256.lower())
