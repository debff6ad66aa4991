"""ModelScope: the same transfer behind another listing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import DownloadFailed, SourceRefused
from pipelines.model_source import Source
from pipelines.system.manifest import verify_manifest
from tests.training.sources.models import COMMIT, NAME, SHARD, model, sha256
from tests.training.sources.site import Site, cut, status, wrong_bytes

Get = Callable[..., Path]
SOURCE = Source("modelscope", NAME, COMMIT)
LISTING = f"/api/v1/models/{NAME}/repo/files"
TOKEN = "ms-a-secret"


def path(file: str) -> str:
    return f"/models/{NAME}/resolve/{COMMIT}/{file}"


def publish(site: Site, **changes: object) -> None:
    files = [{"Path": "assets", "Type": "tree", "Size": 0}] + [
        {"Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256(content).upper(), **changes}
        for name, content in model().items()
    ]
    site.bodies[LISTING] = json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode()
    site.bodies |= {path(name): content for name, content in model().items()}


@pytest.fixture(autouse=True)
def _published(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"{site.url}/")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    publish(site)


def test_a_model_arrives_whole_through_a_cut_connection(site: Site, get: Get) -> None:
    site.faults[path(SHARD)].append(cut(0.6))
    folder = get(SOURCE)
    verify_manifest(folder)
    assert folder.name == f"modelscope-acme--tiny@{COMMIT}"
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"} == model()
    assert site.ranges(SHARD) == [None, "bytes=120000-"]
    assert site.asked("/files")[0].query == f"Revision={COMMIT}&Recursive=true"


def test_the_token_is_sent_in_both_forms(site: Site, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    get(SOURCE)
    sent = {(seen.headers["authorization"], seen.headers["cookie"]) for seen in site.seen}
    assert sent == {(f"Bearer {TOKEN}", f"m_session_id={TOKEN}")}
    assert TOKEN not in caplog.text


def test_wrong_bytes_are_refused(site: Site, get: Get) -> None:
    site.always[path(SHARD)] = wrong_bytes
    with pytest.raises(DownloadFailed, match=f"^{SHARD}: sha256 is"):
        get(SOURCE)


def test_a_listing_without_hashes_is_refused(site: Site, get: Get) -> None:
    publish(site, Sha256="")
    with pytest.raises(SourceRefused, match=r"README.md is published without a SHA-256"):
        get(SOURCE)


def test_an_answer_that_is_no_listing_is_refused(site: Site, get: Get) -> None:
    site.bodies[LISTING] = b'{"Code": 10010205001, "Success": false, "Data": null}'
    with pytest.raises(SourceRefused, match=r"answers no listing of a model.*`git ls-remote .*/acme/tiny\.git`"):
        get(SOURCE)


def test_a_private_model_says_how_to_get_in(site: Site, get: Get) -> None:
    site.always[LISTING] = status(403)
    with pytest.raises(SourceRefused, match=rf"ask for access on {site.url}/models/{NAME}, and set MODELSCOPE_API_TOK"):
        get(SOURCE)
