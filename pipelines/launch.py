"""How a step's process is started: the interpreter of its environment and an argument list."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from pipelines.settings import Settings
from pipelines.steps import Step


def command(step: Step[Any], run: Path, settings: Settings, *, again: bool = False) -> list[str]:
    """The argument list that runs one step.

    Args:
        again: Run it even if its result is there.
    """
    python = {"core": settings.core_python, "ml": settings.ml_python}[step.environment]
    return [python, "-m", "pipelines.execute", str(run), step.name, *(["--again"] if again else [])]


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a step's process: ours, with the machine's facts spelled out."""
    facts = {f"VLMOPS_{key.upper()}": value for key, value in settings.model_dump().items()}
    inherited = {key: value for key, value in os.environ.items() if key not in facts}  # an unset fact stays unset
    return inherited | {key: str(value) for key, value in facts.items() if value is not None}


def run_step(step: Step[Any], run: Path, settings: Settings) -> int:
    """Run one step in its environment, its output shown, and return its exit code; the step ends if we are ended."""
    process = subprocess.Popen(command(step, run, settings), env=environment(settings))
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # the step stops what it started itself
            process.wait()
