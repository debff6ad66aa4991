"""A home as a line leaves it, small."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import Settings


@pytest.fixture
def home(settings: Settings) -> Settings:
    """Settings of a home with a state that is worth a copy."""
    state = settings.state
    for folder in (state / "secrets", state / "mlflow-artifacts" / "1", settings.serving / "engines", settings.sealed):
        folder.mkdir(parents=True)
    state.chmod(0o700)
    with closing(sqlite3.connect(state / "mlflow.db")) as database:
        database.execute("CREATE TABLE versions (number INTEGER, text TEXT)")
        database.execute("INSERT INTO versions VALUES (1, 'first')")
        database.commit()
    secret = state / "secrets" / "front-keys.json"
    secret.write_text('[{"name": "shop"}]')
    secret.chmod(0o600)
    (state / "secrets" / "front-keys.lock").touch()
    (state / "mlflow-artifacts" / "1" / "report.html").write_text("<p>a report</p>" * 2000)
    (settings.serving / "deploy.jsonl").write_text('{"state": "serving"}\n')
    (settings.serving / "serving.json").write_text('{"version": 1}')
    (settings.serving / "engines" / "v1.log").write_text("of this hour")
    (settings.sealed / "abc.jsonl").write_text('{"run": "one"}\n')
    return settings


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_child(task: Callable[..., None], *arguments: Any) -> int | None:
    """How a task ended in a process of its own: 0 is well, negative a signal."""
    process = get_context("fork").Process(target=task, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def with_small_files_only(task: Callable[[], None]) -> None:
    """Run a task in a process that can write no file beyond 20 kB, as on a disk that fills up; 7 where it says so."""
    import resource
    import signal

    from pipelines.errors import VlmopsError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        task()
    except VlmopsError:
        os._exit(7)
