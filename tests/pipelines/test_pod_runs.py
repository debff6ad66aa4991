"""Runs in a bucket, by boto3 and a real S3 server on loopback (moto): whole or not there, and never sent twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from pipelines.cli import main
from pipelines.errors import AlreadyRunning, BadInput, DownloadFailed, RunConflict, Unreachable
from pipelines.pod_runs import LISTED, Bucket, bucket, pull, push
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, EXPORT, GATE
from pipelines.system.durable import sha256_file
from pipelines.system.manifest import verify_manifest, write_manifest
from tests.pipelines.finished_run import decide, evaluated_run

ADDRESS = "s3://runs/team/a"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def where(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for key, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    with bucket(ADDRESS) as found:
        found.client.create_bucket(Bucket="runs")
        yield found
        for one in found.client.list_objects_v2(Bucket="runs").get("Contents", []):
            found.client.delete_object(Bucket="runs", Key=one["Key"])


@pytest.fixture
def run(settings: Settings) -> Run:
    run = evaluated_run(settings, "one", "digits")
    model = run.folder(EXPORT) / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    write_manifest(model)  # a file like any other to the bucket
    return run


def tree(run: Run) -> dict[str, bytes]:
    files = (path for path in run.root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(run.root)): path.read_bytes() for path in files}


class Cut(Exception):
    """The connection, in the middle."""


def cut_after(where: Bucket, calls: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client do so much, and no more."""
    real, left = getattr(where.client, method), iter(range(calls))

    def some(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise Cut
        return real(*arguments, **named)

    monkeypatch.setattr(where.client, method, some)


def test_a_run_comes_back_as_it_was(run: Run, where: Bucket) -> None:
    before = tree(run)
    assert push(run, where) == len(set(before.values()))
    shutil.rmtree(run.root)
    assert pull(run.root, where) == len(before)
    assert tree(run) == before
    verify_manifest(run.folder(EXPORT) / "model")
    assert Run.open(run.root).read(EVALUATE).golden == run.folder(EVALUATE) / "golden"


def test_what_is_there_is_not_sent_or_fetched_again(run: Run, where: Bucket) -> None:
    push(run, where)
    assert push(run, where) == 0
    decide(run, "pass")
    assert push(run, where) == 1
    (run.folder(GATE) / "output.json").unlink()
    assert pull(run.root, where) == 1


def test_an_older_state_does_not_take_the_place_of_a_newer_one(run: Run, where: Bucket) -> None:
    push(run, where)
    decide(run, "pass")
    push(run, where)
    result = run.folder(GATE) / "output.json"
    decided = result.read_bytes()
    result.unlink()  # as on the machine that pushed before the other one decided
    with pytest.raises(RunConflict, match=r"has gate/output\.json of one, which is not here.*pull it first"):
        push(run, where)
    assert pull(run.root, where) == 1
    assert result.read_bytes() == decided
    assert push(run, where) == 0


def test_a_push_that_was_cut_is_no_run_and_goes_on(
    run: Run, where: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        cut_after(where, 2, "upload_file", patch)
        with pytest.raises(Cut):
            push(run, where)
    with pytest.raises(BadInput, match="holds no run one"):
        pull(run.root, where)
    assert push(run, where) == len(set(tree(run).values())) - 2


def test_a_pull_that_was_cut_has_no_result_and_goes_on(
    run: Run, where: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, where)
    before = tree(run)
    results = sum(name.endswith("output.json") for name in before)
    shutil.rmtree(run.root)
    with monkeypatch.context() as patch:
        cut_after(where, len(before) - results, "download_fileobj", patch)  # all but results
        with pytest.raises(Cut):
            pull(run.root, where)
    assert {name for name in before if name.endswith("output.json")} & set(tree(run)) == set()
    assert pull(run.root, where) == results
    assert tree(run) == before


def test_an_object_that_changed_is_not_taken(run: Run, where: Bucket) -> None:
    push(run, where)
    digest = sha256_file(run.root / "config.json")
    key, size = where.key("objects", digest), (run.root / "config.json").stat().st_size
    where.client.put_object(Bucket=where.name, Key=key, Body=b" " * size)  # no push finds out by its size
    config = (run.root / "config.json").rename(run.root / ".config")
    with pytest.raises(DownloadFailed, match=f"delete s3://{where.name}/{key} and push"):
        pull(run.root, where)
    assert not (run.root / "config.json").exists()
    where.client.delete_object(Bucket=where.name, Key=key)  # as it said
    config.rename(run.root / "config.json")
    assert push(run, where) == 1


def test_a_pull_that_is_cut_within_a_file_leaves_no_more_each_time(
    run: Run, where: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, where)
    before = tree(run)
    shutil.rmtree(run.root)
    real = where.client.download_fileobj

    def killed(bucket: str, key: str, file: Any) -> None:
        real(bucket, key, file)
        file.truncate(1)
        raise Cut  # and nobody tidies up

    left = []
    with monkeypatch.context() as patch:
        patch.setattr(where.client, "download_fileobj", killed)
        for _ in range(2):
            with pytest.raises(Cut):
                pull(run.root, where)
            left.append(sorted(path.name for path in run.root.rglob("*") if path.is_file()))
    assert left[0] == left[1]
    assert len(left[0]) == 1
    assert pull(run.root, where) == len(before)
    assert tree(run) == before
    assert not list(run.root.rglob("*.partial*"))


def test_a_pull_waits_for_a_step_that_runs_here(run: Run, where: Bucket) -> None:
    push(run, where)
    with run.claim(EVALUATE), pytest.raises(AlreadyRunning):
        pull(run.root, where)


def test_what_is_here_is_never_overwritten(run: Run, where: Bucket) -> None:
    push(run, where)
    (run.folder(EVALUATE) / "output.json").write_text("mine")
    with pytest.raises(RunConflict, match=r"output\.json is here with another content"):
        pull(run.root, where)
    assert (run.folder(EVALUATE) / "output.json").read_text() == "mine"


def test_a_link_is_not_followed(run: Run, where: Bucket, tmp_path: Path) -> None:
    (run.root / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="elsewhere is a link"):
        push(run, where)


def test_a_running_step_is_waited_for(run: Run, where: Bucket) -> None:
    with run.claim(EVALUATE), pytest.raises(AlreadyRunning):
        push(run, where)


def test_a_run_lies_where_its_results_say(run: Run, where: Bucket, tmp_path: Path) -> None:
    push(run, where)
    with pytest.raises(BadInput, match="let VLMOPS_HOME be"):
        pull(tmp_path / "other" / run.name, where)


def test_a_list_that_leads_out_of_the_run_is_refused(run: Run, where: Bucket) -> None:
    listed = {"root": str(run.root.resolve()), "files": {"../../x": {"size": 1, "sha256": "0" * 64}}}
    where.client.put_object(Bucket=where.name, Key=where.key("runs", run.name, LISTED), Body=json.dumps(listed))
    with pytest.raises(BadInput, match="would leave"):
        pull(run.root, where)


def test_the_command_line_does_both(run: Run, where: Bucket) -> None:
    before = tree(run)
    assert main(["remote", "push", str(run.root), ADDRESS]) == 0
    shutil.rmtree(run.root)
    assert main(["remote", "pull", run.name, ADDRESS]) == 0
    assert tree(run) == before
    assert main(["remote", "pull", "another", ADDRESS]) == 2
    assert main(["remote", "push", str(run.root), "http://runs"]) == 2


def test_a_bucket_that_does_not_answer_is_said(run: Run, where: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unreachable, match=ADDRESS), bucket(ADDRESS) as away:
        push(run, away)
    monkeypatch.undo()
    with pytest.raises(Unreachable, match="elsewhere"), bucket("s3://elsewhere/a") as missing:
        push(run, Bucket(where.client, missing.name, missing.folder))
