"""Step functions that cost nothing, for tests of what runs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipelines.artifacts import BaseSnapshot, GateDecision
from pipelines.config import Config
from pipelines.errors import DataRejected


def download(config: Config, folder: Path) -> BaseSnapshot:
    """Count the calls; a result for the table's first step."""
    calls = folder / "calls"
    calls.write_text(calls.read_text() + "." if calls.exists() else ".")
    return BaseSnapshot(
        path=folder, source=config.model.source, revision="0" * 40, digest="d" * 64, architecture="Tiny"
    )


def refuse(config: Config, folder: Path) -> BaseSnapshot:
    """Fail for a reason of the user's."""
    raise DataRejected("9 of 10 rows are unusable")


def stall(config: Config, folder: Path) -> BaseSnapshot:
    """Say that we are in the middle, and stay there to be killed."""
    (folder / "half").write_text("h")
    print(os.getpid(), flush=True)
    time.sleep(600)
    raise AssertionError


def say_no(config: Config, folder: Path) -> GateDecision:
    """A gate that refuses."""
    return GateDecision(outcome="fail", reference="base", findings=())
