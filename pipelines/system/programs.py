"""Programs that Python packages bring: they lie beside the interpreter of their environment."""

from __future__ import annotations

import shutil
from pathlib import Path


def beside(python: str, name: str) -> str | None:
    """A program of an interpreter's environment, else the one on PATH; None: there is neither."""
    program = Path(python).with_name(name)
    return str(program) if program.is_file() else shutil.which(name)
