"""Runs in a bucket, for machines that share no disk: `vlmops remote push` and `pull`.

A file lies under its SHA-256, so that one that is there is not sent again; the list of a run's files is written last.
So a push or pull that was cut goes on where it was, and no reader sees half a run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import DONE, BadInput, DownloadFailed, RunConflict, Unreachable
from pipelines.run import Run, run_name
from pipelines.settings import Settings
from pipelines.steps import STEPS
from pipelines.system.durable import commit, partial_of, sha256_file

log = logging.getLogger(__name__)

LISTED = "files.json"
"""The list of a run's files in the bucket, with sizes, hashes, and where the run lay."""

LAST = "output.json"
"""Says that a step finished; it arrives after everything else."""


@dataclass(frozen=True)
class Bucket:
    """A folder of a bucket; credentials and endpoint are boto3's own."""

    client: Any
    name: str
    folder: str

    def key(self, *parts: str) -> str:
        """Of an object."""
        return "/".join(filter(None, (self.folder, *parts)))

    def holds(self, key: str, size: int) -> bool:
        """Whether an object is there, of this size."""
        from botocore.exceptions import ClientError

        try:
            return bool(self.client.head_object(Bucket=self.name, Key=key)["ContentLength"] == size)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"404", "NoSuchKey", "NotFound"}:
                raise
            return False


@contextmanager
def bucket(address: str) -> Iterator[Bucket]:
    """The folder that `s3://bucket/folder` names.

    Raises:
        BadInput: It is no such address.
        Unreachable: The bucket does not answer, or refuses.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    named = urlsplit(address)
    if named.scheme != "s3" or not named.hostname:
        raise BadInput(f"{address} is no bucket; write s3://bucket/folder")
    try:
        yield Bucket(boto3.Session().client("s3"), named.netloc, named.path.strip("/"))
    except (BotoCoreError, Boto3Error, ClientError) as error:
        raise Unreachable("the bucket", address, error) from error


def push(run: Run, where: Bucket) -> int:
    """Send what the bucket does not have of a run; returns the number of files sent.

    Raises:
        AlreadyRunning: A step of it is running.
        BadInput: A link in it leads elsewhere.
        RunConflict: Another machine went on with it: the bucket has a result that is not here.
    """
    with ExitStack() as claims:
        for step in (step for step in STEPS.values() if run.folder(step).is_dir()):
            claims.enter_context(run.claim(step))
        files = {str(path.relative_to(run.root)): _fact(path) for path in _files(run.root)}
        _require_newest(run, files, where)
        sent = [name for name, fact in files.items() if _send(run.root / name, fact, where)]
        listed = json.dumps({"root": str(run.root.resolve()), "files": files}, indent=1)
        where.client.put_object(Bucket=where.name, Key=where.key("runs", run.name, LISTED), Body=listed.encode())
    return len(sent)


def pull(root: Path, where: Bucket) -> int:
    """Fetch what is missing of a run; returns the number of files fetched.

    Raises:
        AlreadyRunning: A step of it is running here.
        BadInput: The bucket has no such run, or the run lay elsewhere: its results hold paths.
        RunConflict: A file is there with another content.
        DownloadFailed: What came is not what was sent.
    """
    listed = _list(root.name, where)
    if not listed:
        raise BadInput(f"s3://{where.name}/{where.folder} holds no run {root.name}; push it first")
    if listed["root"] != str(root.resolve()):
        raise BadInput(
            f"{root.name} lay in {listed['root']}, and its results hold paths; let VLMOPS_HOME be the one it had"
        )
    files: dict[str, dict[str, Any]] = listed["files"]
    with ExitStack() as claims:
        for step in (step for step in STEPS.values() if Run(root).folder(step).is_dir()):
            claims.enter_context(Run(root).claim(step))
        missing = [name for name in files if not _is_here(root, name, files[name])]
        for name in sorted(missing, key=lambda name: (Path(name).name == LAST, name)):
            _fetch(root / name, files[name], where)
    return len(missing)


def add_remote(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops remote`."""
    command.add_argument("action", choices=("push", "pull"))
    command.add_argument("run", type=Path, help="directory of the run; to pull, its name is enough")
    command.add_argument("bucket", help="s3://bucket/folder; AWS_... as for boto3")
    command.set_defaults(command=_remote)


def _remote(args: argparse.Namespace) -> int:
    with bucket(args.bucket) as where:
        if args.action == "push":
            log.info("%d files sent", push(Run.open(args.run), where))
        else:
            log.info("%d files fetched", pull(Settings().runs / run_name(args.run.name), where))
    return DONE


def _files(root: Path) -> list[Path]:
    """Every file, those of locks and of writing under way left out."""
    paths = [path for path in sorted(root.rglob("*")) if not path.name.startswith(".")]
    if links := [path for path in paths if path.is_symlink()]:
        raise BadInput(
            f"{links[0]} is a link, and what it leads to may not be there elsewhere; put a copy in its place"
        )
    return [path for path in paths if path.is_file()]


def _fact(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _send(path: Path, fact: dict[str, Any], where: Bucket) -> bool:
    key = where.key("objects", fact["sha256"])
    if where.holds(key, fact["size"]):
        return False
    where.client.upload_file(str(path), where.name, key)
    return True


def _require_newest(run: Run, files: Mapping[str, Any], where: Bucket) -> None:
    """An older state of a run would take the results of a newer one off the list."""
    there = _list(run.name, where).get("files", {})
    if newer := sorted(name for name in there if Path(name).name == LAST and name not in files):
        raise RunConflict(
            f"s3://{where.name}/{where.folder} has {newer[0]} of {run.name}, which is not here: another machine went "
            f"on with it, or it is being redone here; pull it first"
        )


def _list(name: str, where: Bucket) -> dict[str, Any]:
    """What the bucket holds of a run; empty: it does not."""
    from botocore.exceptions import ClientError

    try:
        answer = where.client.get_object(Bucket=where.name, Key=where.key("runs", name, LISTED))
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        return {}
    listed: dict[str, Any] = json.loads(answer["Body"].read())
    return listed


def _is_here(root: Path, name: str, fact: dict[str, Any]) -> bool:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadInput(f"{name} would leave {root}; whoever wrote that list is not vlmops")
    if not path.exists():
        return False
    if sha256_file(path) != fact["sha256"]:
        raise RunConflict(f"{path} is here with another content than was pushed; delete its folder, then pull again")
    return True


def _fetch(path: Path, fact: dict[str, Any], where: Bucket) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    key, partial = where.key("objects", fact["sha256"]), partial_of(path)
    with partial.open("wb") as file:  # ours, written over by the next attempt: boto3's own would be left by a kill
        where.client.download_fileobj(where.name, key, file)
        file.flush()
        os.fsync(file.fileno())
    if (seen := sha256_file(partial)) != fact["sha256"]:
        partial.unlink()
        raise DownloadFailed(
            f"{path}: SHA-256 {seen[:12]} came where {fact['sha256'][:12]} was sent; if that happens again, delete "
            f"s3://{where.name}/{key} and push the run again"
        )
    commit(partial, path)
