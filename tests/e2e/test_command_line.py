"""The line from the command line, on the dense model that machines without an INT8 expert kernel get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import BAD_INPUT, REJECTED
from pipelines.run import Run
from pipelines.settings import ROOT, Settings
from pipelines.steps import DOWNLOAD, EVALUATE, EXPORT, GATE, REGISTER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DENSE = [
    "--set", "model.source=builtin://tiny-qwen3-vl",
    "--set", "train.steps=20",
    "--set", "export.keep_merged=false",
]  # fmt: skip


def vlmops(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = {**os.environ, "VLMOPS_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_candidate_that_learnt_too_little_is_refused(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "smoke.yaml")
    done = vlmops(tmp_path, "run", config, "--name", "dense", *DENSE)
    assert done.returncode == REJECTED, done.stdout + done.stderr
    assert "the gate said no" in done.stderr
    run = Run.open(Settings(home=tmp_path).runs / "dense")
    assert run.read(DOWNLOAD).architecture == "Qwen3VLForConditionalGeneration"
    assert run.read(EXPORT).merged_path is None
    schemes = {evaluation.subject: evaluation.scheme for evaluation in run.read(EVALUATE).evaluations}
    assert schemes == {"base": "int8_w8a8", "candidate": "int8_w8a8"}
    assert run.read(GATE).outcome in {"fail", "inconclusive"}
    assert not (run.folder(REGISTER) / "output.json").exists()

    status = vlmops(tmp_path, "status", str(run.root))
    assert "said no" in status.stdout

    other = vlmops(tmp_path, "run", config, "--name", "dense", *DENSE, "--set", "lora.rank=2")
    assert other.returncode == BAD_INPUT
    assert "another config" in other.stderr
