"""Run a step and die in the middle of it, by SIGKILL: `die.py MODULE:NAME COUNT STEP FOLDER CONFIG INPUT...`."""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.steps import STEPS


def die_at(where: str, count: int) -> None:
    """Let the `count`-th call of a function or method be the process's last."""
    owner_name, _, name = where.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original = getattr(owner, name)
    calls = 0

    def lethal(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, lethal)


def main() -> None:
    """Read the arguments and go."""
    where, count, name, folder, config, *inputs = sys.argv[1:]
    step = STEPS[name]
    die_at(where, int(count))
    artifacts = [need.output.model_validate_json(text) for need, text in zip(step.needs, inputs, strict=True)]
    pkgutil.resolve_name(step.target)(Config.model_validate_json(config), Path(folder), *artifacts)


if __name__ == "__main__":
    main()
