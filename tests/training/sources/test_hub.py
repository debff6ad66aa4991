"""The hub: each fault ends in a complete verified folder, or in an error that names the file and the way out."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import DownloadFailed, MachineUnfit, SourceRefused
from pipelines.settings import ROOT
from pipelines.system.manifest import read_manifest, verify_manifest
from pipelines.system.processes import wait_until
from tests.training.sources.conftest import TOKEN
from tests.training.sources.models import COMMIT, HF, NAME, SHARD, Files, HubSite, model, sha256
from tests.training.sources.site import Site, cut, moved, status, whole_again, wrong_bytes
from training.sources.connection import ATTEMPTS
from training.sources.transfer import WHOLE_TRIES

Get = Callable[..., Path]


def assert_whole(folder: Path, files: Files) -> None:
    verify_manifest(folder)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name != "manifest.json"} == files
    assert folder.name == f"hf-acme--tiny@{COMMIT}"


def unfinished(cache: Path) -> Path:
    return cache / "bases" / f".hf-acme--tiny@{COMMIT}.partial"


def test_a_model_arrives_whole(hub: HubSite, get: Get) -> None:
    folder = get()
    assert_whole(folder, hub.files)
    manifest = read_manifest(folder)
    assert (manifest["source"], manifest["revision"]) == (str(HF), COMMIT)
    assert manifest["published"][SHARD] == f"sha256:{sha256(hub.files[SHARD])}"


def test_a_model_that_is_there_is_used_without_the_network(hub: HubSite, get: Get) -> None:
    folder = get()
    hub.site.seen.clear()
    assert get() == folder
    assert hub.site.seen == []


def test_what_no_model_needs_is_left_out_and_said(
    site: Site, hub: HubSite, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"copy", ".gitattributes": b"", "a.py": b""}
    HubSite(site, hub.files | extra)
    assert_whole(get(), hub.files)
    assert "left out, because no model needs them: .gitattributes, a.py, onnx/model.safetensors, pytorch_model.bin" in (
        caplog.text
    )


@pytest.mark.parametrize("share", [0.6, 0.0, 0.999])
def test_a_cut_connection_is_gone_on_with_where_it_broke(share: float, hub: HubSite, get: Get) -> None:
    hub.site.faults[hub.path(SHARD)].append(cut(share))
    assert_whole(get(), hub.files)
    arrived = int(200_000 * share)
    assert hub.site.ranges(SHARD) == [None, f"bytes={arrived}-" if arrived else None]


def test_many_cuts_that_each_bring_something_are_no_failure(hub: HubSite, get: Get) -> None:
    hub.site.faults[hub.path(SHARD)].extend([cut(0.3)] * (2 * ATTEMPTS))
    assert_whole(get(), hub.files)


def test_cuts_that_bring_nothing_end_in_an_error_that_names_the_file(
    hub: HubSite, get: Get, waits: list[float]
) -> None:
    hub.site.always[hub.path(SHARD)] = cut(0)
    with pytest.raises(DownloadFailed, match=rf"^{SHARD}: .*try 5 that brought nothing; run it again"):
        get()
    assert waits == [2, 4, 8, 16]


def test_a_server_without_ranges_sends_the_whole_file_again(hub: HubSite, get: Get) -> None:
    hub.site.faults[hub.path(SHARD)].extend([cut(0.6), whole_again(hub.files[SHARD])])
    assert_whole(get(), hub.files)


def test_wrong_bytes_are_fetched_again(hub: HubSite, get: Get) -> None:
    hub.site.faults[hub.path(SHARD)].append(wrong_bytes)
    hub.site.faults[hub.path("config.json")].append(wrong_bytes)
    assert_whole(get(), hub.files)


def test_wrong_bytes_after_a_cut_cost_the_whole_file(hub: HubSite, get: Get) -> None:
    hub.site.faults[hub.path(SHARD)].extend([cut(0.6), wrong_bytes])
    assert_whole(get(), hub.files)
    assert hub.site.ranges(SHARD) == [None, "bytes=120000-", None]


@pytest.mark.parametrize(("file", "algorithm"), [(SHARD, "sha256"), ("config.json", "git-sha1")])
def test_bytes_that_stay_wrong_are_refused_with_both_hashes(
    file: str, algorithm: str, hub: HubSite, get: Get, tmp_path: Path
) -> None:
    hub.site.always[hub.path(file)] = wrong_bytes
    with pytest.raises(DownloadFailed, match=rf"^{file}: {algorithm} is \w+ where \w+ is published, 3 times") as failed:
        get()
    assert algorithm != "sha256" or sha256(hub.files[file]) in str(failed.value)
    assert len(hub.site.asked(file)) == WHOLE_TRIES
    assert not list(tmp_path.rglob(f"*{file}*"))


def test_more_bytes_than_published_are_not_taken(hub: HubSite, get: Get) -> None:
    hub.site.always[hub.path(SHARD)] = lambda answer: whole_again(answer.body + b"more")(answer)
    with pytest.raises(DownloadFailed, match=SHARD):
        get()


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_for_patience_gets_it(code: int, hub: HubSite, get: Get, waits: list[float]) -> None:
    hub.site.faults[hub.path(SHARD)].append(status(code, {"Retry-After": "7"}))
    hub.site.faults[hub.listing].append(status(code, {"RateLimit": '"api";r=0;t=55'}))
    assert_whole(get(), hub.files)
    assert waits == [55, 7]


def test_a_server_that_asks_for_a_day_is_not_waited_for(hub: HubSite, get: Get, waits: list[float]) -> None:
    hub.site.faults[hub.path(SHARD)].append(status(429, {"Retry-After": "86400"}))
    with pytest.raises(DownloadFailed, match=r"status 429.*run it again in 86400 s"):
        get()
    assert waits == []


def test_a_revision_that_is_not_there_is_named(hub: HubSite, get: Get) -> None:
    del hub.site.bodies[hub.listing]
    with pytest.raises(SourceRefused, match=rf"{COMMIT}: not there \(status 404\); `git ls-remote .*/{NAME}` prints"):
        get()


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("where", ["listing", SHARD])
def test_a_gated_model_says_how_to_get_in(where: str, code: int, hub: HubSite, get: Get) -> None:
    hub.site.always[hub.listing if where == "listing" else hub.path(where)] = status(code)
    with pytest.raises(SourceRefused, match=rf"accept the licence on {hub.site.url}/{NAME} .* set HF_TOKEN"):
        get()


def test_the_token_goes_to_the_hub_and_to_no_other_host(
    hub: HubSite, other_site: Site, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    other_site.bodies["/cdn"] = hub.files[SHARD]
    other_site.faults["/cdn"].append(status(503))
    hub.site.always[hub.path(SHARD)] = moved(f"{other_site.url}/cdn?Signature=also-a-secret")
    assert_whole(get(), hub.files)
    assert {seen.headers["authorization"] for seen in hub.site.seen} == {f"Bearer {TOKEN}"}
    assert len(other_site.seen) == 2
    assert all("authorization" not in seen.headers for seen in other_site.seen)
    assert TOKEN not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("token", ["hf_a-secret\x7f", "hf_a-secret\u20ac", "hf_a-secret\nInjected: 1"])
def test_a_token_that_cannot_be_sent_is_not_shown(
    token: str, hub: HubSite, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceRefused, match="HF_TOKEN holds") as refused:
        get()
    assert "secret" not in str(refused.value)
    assert hub.site.seen == []


@pytest.mark.parametrize("path", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\..\\evil.json", "a//b"])
def test_a_path_that_leaves_the_folder_is_refused_before_anything_is_fetched(
    path: str, site: Site, hub: HubSite, get: Get, tmp_path: Path
) -> None:
    HubSite(site, hub.files | {path: b"{}"})
    with pytest.raises(SourceRefused, match="leaves the model's folder"):
        get()
    assert [seen.path for seen in site.seen] == [hub.listing]
    assert not list(tmp_path.rglob("evil*"))


def test_a_model_of_pickles_only_is_refused(site: Site, hub: HubSite, get: Get) -> None:
    pickles = {path: content for path, content in hub.files.items() if not path.endswith(".safetensors")}
    HubSite(site, pickles | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(SourceRefused, match=r"only pickled ones, which can run code \(pytorch_model.bin\)"):
        get()
    assert not site.asked("pytorch_model.bin")


SPOILED: dict[str, tuple[str, bytes, str]] = {
    "auto_map": ("config.json", b'{"auto_map": {}, "architectures": ["A"]}', "config.json: `auto_map`"),
    "no architecture": ("config.json", b"{}", "names no `architectures`"),
    "missing shard": (
        "model.safetensors.index.json",
        b'{"weight_map": {"a": "model-00009.safetensors"}}',
        "model-00009.safetensors: named in the index and not there",
    ),
}


@pytest.mark.parametrize(("file", "content", "message"), SPOILED.values(), ids=SPOILED.keys())
def test_what_may_not_be_used_is_refused_before_the_weights_are_fetched(
    file: str, content: bytes, message: str, site: Site, hub: HubSite, get: Get
) -> None:
    HubSite(site, hub.files | {file: content})
    with pytest.raises(SourceRefused, match=message):
        get()
    assert not site.asked(".safetensors")


LISTINGS: dict[str, tuple[object, str]] = {
    "no listing": ("welcome", "answers no listing of a model"),
    "another commit": ({"sha": "d" * 40, "siblings": []}, f"answers for commit {'d' * 40}"),
    "no files": ({"sha": COMMIT, "siblings": []}, "no \\*.safetensors weights"),
    "no hash": ({"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors"}]}, "listed without size and hash"),
}


@pytest.mark.parametrize(("listing", "message"), LISTINGS.values(), ids=LISTINGS.keys())
def test_a_listing_that_cannot_be_used_is_refused(listing: object, message: str, hub: HubSite, get: Get) -> None:
    hub.publish(listing)
    with pytest.raises(SourceRefused, match=message):
        get()


def test_a_model_that_the_disk_cannot_hold_is_refused_before_it_is_fetched(hub: HubSite, get: Get) -> None:
    listing = json.loads(hub.site.bodies[hub.listing])
    listing["siblings"][-1]["lfs"]["size"] = 10**18
    hub.publish(listing)
    with pytest.raises(MachineUnfit, match=r"needs 100000000\d\.\d GB in .*, and [\d.]+ GB are free"):
        get()
    assert [seen.path for seen in hub.site.seen] == [hub.listing]


def test_a_write_that_fails_names_the_file(hub: HubSite, get: Get) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DownloadFailed, match=rf"\.{SHARD}\.partial: File too large; mend that"):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_whole(get(), hub.files)


def test_the_small_files_alone_are_enough_to_look_at(hub: HubSite, get: Get) -> None:
    folder = get(small_only=True)
    assert (folder / "config.json").is_file()
    assert not hub.site.asked(".safetensors")
    assert_whole(get(), hub.files)


def test_a_damaged_model_is_mended_by_what_is_missing(hub: HubSite, get: Get) -> None:
    folder = get()
    (folder / SHARD).write_bytes(b"x" * 200_000)
    (folder / "README.md").unlink()
    (folder / "stranger.bin").touch()
    hub.site.seen.clear()
    assert_whole(get(), hub.files)
    assert {Path(seen.path).name for seen in hub.site.seen} == {COMMIT, SHARD, "README.md"}


def fetching(cache: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from pipelines.model_source import parse_source\n"
        "from training.sources.remote import fetch; fetch(parse_source(sys.argv[1]), Path(sys.argv[2]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(HF), str(cache)], cwd=ROOT, env=dict(os.environ))


def held_at(hub: HubSite, cache: Path, share: float) -> tuple[subprocess.Popen[bytes], threading.Event]:
    """A process that has received a share of the large shard, and the event that lets the connection break."""
    hold = threading.Event()
    hub.site.faults[hub.path(SHARD)] = deque([cut(share, hold)])
    process = fetching(cache)
    partial = unfinished(cache) / f".{SHARD}.partial"
    arrived = int(200_000 * share)

    def there() -> bool:
        return partial.is_file() and partial.stat().st_size > 0 and bool(hub.site.asked(SHARD))

    wait_until(there, 60, lambda: DownloadFailed(f"no {arrived} bytes"), interval=0.02)
    return process, hold


def test_a_killed_download_goes_on_where_it_was(hub: HubSite, get: Get, tmp_path: Path) -> None:
    process, hold = held_at(hub, tmp_path / "cache", 0.6)
    process.kill()
    assert process.wait() == -9
    hold.set()
    kept = (unfinished(tmp_path / "cache") / f".{SHARD}.partial").stat().st_size
    assert not (tmp_path / "cache" / "bases" / f"hf-acme--tiny@{COMMIT}").exists()
    assert_whole(get(), hub.files)
    assert hub.site.ranges(SHARD) == [None, f"bytes={kept}-"]


def test_of_two_processes_one_downloads(
    hub: HubSite, get: Get, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process, hold = held_at(hub, tmp_path / "cache", 0.6)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(get)
        wait_until(lambda: "waiting for it" in caplog.text, 30, lambda: DownloadFailed("did not wait"), interval=0.02)
        hold.set()
        assert_whole(second.result(60), hub.files)
    assert process.wait(60) == 0
    assert len(hub.site.asked("model-00001-of-00002.safetensors")) == 1


def test_every_file_is_asked_for_once(hub: HubSite, get: Get) -> None:
    get()
    assert sorted(Path(s.path).name for s in hub.site.seen if s.path != hub.listing) == sorted(
        path for path, content in model().items()
    )
