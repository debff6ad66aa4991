"""S3, spoken by boto3 on one side and a small double on the other: hashes, signed addresses, a revision of its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from pipelines.errors import DownloadFailed, SourceRefused
from pipelines.model_source import Source, parse_source
from pipelines.system.manifest import read_manifest, verify_manifest
from tests.training.sources.models import SHARD, model, sha256
from tests.training.sources.site import Site, cut, status, wrong_bytes

Get = Callable[..., Path]
SOURCE = Source("s3", "models/team/tiny", None)
KEY_ID, KEY = "AKIAEXAMPLE", "a-secret"


def key(file: str) -> str:
    return f"/models/team/tiny/{file}"


class BucketSite:
    """A bucket that holds a model."""

    def __init__(self, site: Site, files: dict[str, bytes]) -> None:
        self.site = site
        self.put(files)

    def put(self, files: dict[str, bytes]) -> None:
        """Upload files, each in one part: their ETags are MD5s."""
        for file, content in files.items():
            self.site.bodies[key(file)] = content
            self.site.headers[key(file)] = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        sizes = {path: len(content) for path, content in self.site.bodies.items() if path.startswith("/models/")}
        entries = "".join(
            f"<Contents><Key>{path.removeprefix('/models/')}</Key><Size>{size}</Size></Contents>"
            for path, size in (sizes | {key(""): 0}).items()
        )
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self.site.bodies["/models"] = listing.encode()

    def describe(self, file: str, **headers: str) -> None:
        """Change what the bucket says about an object."""
        self.site.headers[key(file)] = {
            **self.site.headers[key(file)],
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }


@pytest.fixture(autouse=True)
def bucket(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BucketSite:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": site.url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    return BucketSite(site, model())


def test_a_model_arrives_whole_through_a_cut_connection(site: Site, get: Get) -> None:
    site.faults[key(SHARD)].extend([lambda answer: answer, cut(0.6)])  # the first is the HEAD request
    folder = get(SOURCE)
    verify_manifest(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"} == model()
    fetched = [seen for seen in site.asked(SHARD) if seen.method == "GET"]
    assert [seen.headers.get("range") for seen in fetched] == [None, "bytes=120000-"]
    assert all("X-Amz-Signature" in parse_qs(seen.query) for seen in fetched)


def test_the_listing_is_the_revision(bucket: BucketSite, get: Get) -> None:
    first = get(SOURCE)
    revision = read_manifest(first)["revision"]
    pinned = parse_source(f"{SOURCE}@{revision}")
    bucket.site.seen.clear()
    assert get(pinned) == first
    assert bucket.site.seen == []
    bucket.put({"README.md": b"Another model."})
    second = get(SOURCE)
    assert second.name != first.name == f"s3-models--team--tiny@{revision}"


def test_a_pinned_folder_that_has_changed_is_refused(get: Get) -> None:
    with pytest.raises(SourceRefused, match=r"holds other files now; name s3://models/team/tiny@[0-9a-f]{40} to use"):
        get(Source("s3", SOURCE.place, "0" * 40))


def multipart(bucket: BucketSite) -> None:
    bucket.describe(SHARD, ETag='"0123456789abcdef0123456789abcdef-2"')


def test_an_object_without_a_hash_is_refused_with_the_way_to_publish_one(bucket: BucketSite, get: Get) -> None:
    multipart(bucket)
    with pytest.raises(SourceRefused, match=rf"no hash of {SHARD} is published.*`sha256sum \*`.*SHA256SUMS"):
        get(SOURCE)


def test_an_etag_of_an_encrypted_object_is_no_hash(bucket: BucketSite, get: Get) -> None:
    bucket.describe(SHARD, x_amz_server_side_encryption="aws:kms")
    with pytest.raises(SourceRefused, match=f"no hash of {SHARD} is published"):
        get(SOURCE)


def test_hashes_may_lie_beside_the_files(bucket: BucketSite, get: Get) -> None:
    multipart(bucket)
    sums = "".join(f"{sha256(content)} *./{file}\n" for file, content in model().items())
    bucket.put({"SHA256SUMS": sums.encode()})
    multipart(bucket)
    published = read_manifest(get(SOURCE))["published"]
    assert published[SHARD] == f"sha256:{sha256(model()[SHARD])}"


def test_the_checksum_of_a_whole_object_is_used(bucket: BucketSite, get: Get) -> None:
    multipart(bucket)
    bucket.describe(SHARD, x_amz_checksum_sha256=base64.b64encode(hashlib.sha256(model()[SHARD]).digest()).decode())
    published = read_manifest(get(SOURCE))["published"]
    assert published[SHARD] == f"sha256:{sha256(model()[SHARD])}"


def test_the_checksum_of_parts_is_not(bucket: BucketSite, get: Get) -> None:
    multipart(bucket)
    bucket.describe(SHARD, x_amz_checksum_sha256="AAAA-2", x_amz_checksum_type="COMPOSITE")
    with pytest.raises(SourceRefused, match=f"no hash of {SHARD} is published"):
        get(SOURCE)


def test_wrong_bytes_are_refused_and_no_signature_is_shown(
    site: Site, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    site.always[key(SHARD)] = wrong_bytes
    with pytest.raises(DownloadFailed, match=f"^{SHARD}: md5 is") as failed:
        get(SOURCE)
    for secret in ("Signature", KEY_ID, KEY):
        assert secret not in caplog.text + str(failed.value)


REFUSALS = {
    403: (SourceRefused, "status 403.*AWS_PROFILE"),
    404: (SourceRefused, "status 404"),
    500: (DownloadFailed, "status 500.*again later"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_bucket_that_refuses_is_named(code: int, site: Site, get: Get) -> None:
    error, message = REFUSALS[code]
    site.always["/models"] = status(code)
    with pytest.raises(error, match=f"^s3://models/team/tiny: .*{message}"):
        get(SOURCE)


def test_an_empty_folder_is_refused(site: Site, get: Get) -> None:
    site.bodies["/models"] = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    with pytest.raises(SourceRefused, match=r"nothing there; `aws s3 ls s3://models/team/tiny/`"):
        get(SOURCE)


def test_without_credentials_it_says_which(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(SourceRefused, match="no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        get(SOURCE)


def test_a_bucket_that_does_not_answer_is_a_failure(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadFailed, match="EndpointConnectionError; check AWS_ENDPOINT_URL"):
        get(SOURCE)
