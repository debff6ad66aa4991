"""`s3://bucket/folder`: S3 or what speaks its language, configured as for every other tool of it (`AWS_...`).

A bucket publishes no commit; the digest of the listing takes its place. A file's hash is, in this order, the one in a
`SHA256SUMS` of the folder, the object's SHA-256, its ETag where that is an MD5 (not after a multipart upload).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnection

from pipelines.errors import DownloadFailed, SourceRefused
from pipelines.model_source import Source
from training.sources.connection import Address, Connection, WaysOut
from training.sources.published import PublishedFile, fingerprint, needed

SUMS = "SHA256SUMS"
SIGNED_SECONDS = 3600
"""How long the address of one try is good for."""


class Bucket:
    """One model in a folder of a bucket."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._bucket, _, self._folder = source.place.partition("/")
        self.ways_out = WaysOut(
            no_access="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to an account that may list "
            "and read it, and check AWS_REGION and AWS_ENDPOINT_URL",
            not_there=f"`aws s3 ls s3://{source.place}/` shows what is",
        )
        with self._explained():
            self._client = boto3.Session().client(
                "s3", config=Config(signature_version="s3v4", retries={"mode": "standard"})
            )

    def files(self, connection: Connection) -> list[PublishedFile]:  # noqa: ARG002  boto3 lists by its own connection
        """What the model needs.

        Raises:
            SourceRefused: An object has no hash, or the folder is not the one that the revision names.
            DownloadFailed: The bucket does not answer.
        """
        with self._explained():
            sizes = self._sizes()
            sums = self._sums() if SUMS in sizes else {}
            files = [self._file(path, sizes[path], sums) for path in needed(sizes, str(self._source))]
        now = fingerprint(files)
        if self._source.revision not in {None, now}:
            raise SourceRefused(
                f"{self._source}: the folder holds other files now; name s3://{self._source.place}@{now} to use those"
            )
        return files

    def address(self, path: str) -> Address:
        """Of one object, signed."""
        with self._explained():
            return Address(
                self._client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self._bucket, "Key": f"{self._folder}/{path}"},
                    ExpiresIn=SIGNED_SECONDS,
                )
            )

    def _sizes(self) -> dict[str, int]:
        """Bytes by path; objects that only stand for a folder are left out."""
        prefix = f"{self._folder}/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        objects = [entry for page in pages for entry in page.get("Contents", [])]
        if not objects:
            raise SourceRefused(f"{self._source}: nothing there; {self.ways_out.not_there}")
        return {o["Key"].removeprefix(prefix): int(o["Size"]) for o in objects if not o["Key"].endswith("/")}

    def _sums(self) -> dict[str, str]:
        body = self._client.get_object(Bucket=self._bucket, Key=f"{self._folder}/{SUMS}")["Body"].read()
        lines = re.findall(r"^([0-9a-f]{64}) [ *](?:\./)?(.+)$", body.decode(errors="replace"), re.MULTILINE)
        return {path: digest for digest, path in lines}

    def _file(self, path: str, size: int, sums: dict[str, str]) -> PublishedFile:
        if path in sums:
            return PublishedFile(path, size, "sha256", sums[path])
        head = self._client.head_object(Bucket=self._bucket, Key=f"{self._folder}/{path}", ChecksumMode="ENABLED")
        if head.get("ChecksumSHA256") and head.get("ChecksumType") != "COMPOSITE":
            return PublishedFile(path, size, "sha256", base64.b64decode(head["ChecksumSHA256"]).hex())
        etag = head["ETag"].strip('"')
        if "-" in etag or _is_encrypted(head):
            raise SourceRefused(
                f"{self._source}: no hash of {path} is published (its ETag is none); put `sha256sum *` of the folder "
                f"beside it as {SUMS}, or upload with --checksum-algorithm SHA256"
            )
        return PublishedFile(path, size, "md5", etag)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the library's errors into ours; its texts hold no secrets, but those of addresses may."""
        name, no_access = str(self._source), self.ways_out.no_access
        try:
            yield
        except ClientError as error:
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500:
                raise DownloadFailed(f"{name}: {code} (status {status}); run it again later") from None
            raise SourceRefused(f"{name}: {code} (status {status}); {no_access}") from None
        except NoCredentialsError:
            raise SourceRefused(f"{name}: no credentials; {no_access}") from None
        except (HTTPClientError, NoConnection) as error:
            raise DownloadFailed(f"{name}: {type(error).__name__}; check AWS_ENDPOINT_URL, or run it again") from None
        except BotoCoreError as error:
            raise SourceRefused(f"{name}: {type(error).__name__}; {no_access}") from None


def _is_encrypted(head: dict[str, Any]) -> bool:
    """Whether the ETag is no MD5 because a key of the customer or of KMS was used."""
    return head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
