"""The programs of Prometheus that tests ask; left out where they are missing, unless CI wants them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pipelines.settings import ROOT
from tests.services import require

MONITORING = ROOT / "configs" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    program = require(shutil.which("promtool"), "no promtool (Debian: prometheus)")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
