"""The programs of Prometheus that tests ask; left out where they are missing, unless CI wants them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.settings import ROOT

MONITORING = ROOT / "configs" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    program = shutil.which("promtool")
    if program is None:
        missing = "no promtool (Debian: prometheus)"
        if os.environ.get("VLMOPS_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{missing}, and VLMOPS_REQUIRE_SERVICES=1 wants one")
        pytest.skip(missing)
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
