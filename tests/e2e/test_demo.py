"""The whole line once, for real: Airflow, MLflow, vLLM and Caddy, as `make demo` runs it, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pipelines.answers import read_answers
from pipelines.embedded.mlflow_server import mlflow_server
from pipelines.evaluation import EvalReport
from pipelines.registry import Registry
from pipelines.run import Run, runs_below
from pipelines.settings import Settings
from pipelines.statistics import paired_bounds
from pipelines.steps import EVALUATE, GATE, PROMOTE, REGISTER
from pipelines.tracking import client

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackingRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(home: Path) -> str:
    """What the demo printed."""
    command = [sys.executable, "-m", "pipelines.cli", "demo"]
    done = subprocess.run(
        command, env={**os.environ, "VLMOPS_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def after(home: Path, shown: str) -> Iterator[Settings]:
    """The settings of what the demo left, its MLflow started again."""
    settings = Settings(home=home / "demo")
    with mlflow_server(settings) as uri:
        yield settings.model_copy(update={"mlflow_uri": uri})


def retrains(settings: Settings) -> list[Run]:
    return [run for run in runs_below(settings.runs) if run.folder(GATE).is_dir()]


def test_it_tells_the_story(shown: str) -> None:
    for part in ("retrain", "review", "redeploy", "reviewer", "base", "candidate", "INT8", "Airflow", "MLflow"):
        assert part in shown


def test_nothing_of_it_is_left_running(home: Path, shown: str) -> None:
    mine = [process.pid for process in psutil.process_iter() if str(home) in " ".join(_cmdline(process))]
    assert mine == []


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_the_candidate_gains_more_than_forty_points(after: Settings) -> None:
    accepted = retrains(after)[0]
    report = accepted.read(EVALUATE)
    wins, losses, n = discordant(report, "base", "candidate", "digits")
    lower, _ = paired_bounds(wins, losses, n)
    assert n == 600
    assert lower > 0.40


def test_int8_costs_less_than_two_points(after: Settings) -> None:
    report = retrains(after)[0].read(EVALUATE)
    lower, _ = paired_bounds(*discordant(report, "merged", "candidate", None))
    assert lower > -0.02


def discordant(report: EvalReport, old: str, new: str, slice_name: str | None) -> tuple[int, int, int]:
    def answers(subject: str) -> dict[str, bool]:
        evaluation = report.subject(subject)
        assert evaluation is not None
        told = read_answers(evaluation.answers).items()
        return {item: answer.correct for item, answer in told if slice_name in (None, answer.slice)}

    before, now = answers(old), answers(new)
    wins = sum(now[item] and not before[item] for item in now)
    losses = sum(before[item] and not now[item] for item in now)
    return wins, losses, len(now)


def test_the_forgetful_candidate_is_refused_on_the_guard_slices(after: Settings) -> None:
    accepted, refused = retrains(after)
    assert accepted.read(GATE).outcome == "pass"
    decision = refused.read(GATE)
    assert decision.outcome == "fail"
    assert decision.reference == "champion v1"
    failed = {finding.name for finding in decision.findings if finding.outcome == "fail"}
    assert {"colours", "shapes"} <= failed
    assert "digits" not in failed
    assert not (refused.folder(REGISTER) / "output.json").exists()


def test_the_aliases_name_the_version_that_serves(after: Settings) -> None:
    registry = Registry(after, "digits")
    assert registry.aliases() == {"candidate": 1, "approved": 1, "champion": 1}  # no `serving`: the stack has ended
    tags = registry.tags(1)
    assert tags["gate"] == "pass"
    assert tags["review"] == "approved"
    assert tags["uri"].startswith("file://")
    assert re.fullmatch(r"[0-9a-f]{64}", tags["digest"])


def test_the_deployment_was_probed(after: Settings) -> None:
    deployments = [
        run.read(PROMOTE) for run in runs_below(after.runs) if (run.folder(PROMOTE) / "output.json").exists()
    ]
    assert deployments
    assert deployments[0].version == 1
    assert deployments[0].probe_matched == deployments[0].probe_asked > 0


def test_mlflow_holds_both_runs(after: Settings) -> None:
    mlflow = client(after)
    experiment = mlflow.get_experiment_by_name("vlmops")
    assert experiment is not None
    accepted, refused = retrains(after)
    by_name = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    for run in (accepted, refused):
        check_tracking(mlflow, by_name[run.name])


def check_tracking(mlflow: object, run: TrackingRun) -> None:
    """Parameters, curve, accuracy with intervals, memory and seconds of each step, config, decision, pictures."""
    data, run_id = run.data, run.info.run_id
    assert data.params["lora.rank"]
    assert {"accuracy.candidate.digits", "accuracy.candidate.digits.low", "accuracy.base.digits"} <= data.metrics.keys()
    steps = ("download", "prepare", "finetune", "export", "evaluate", "gate")
    assert {f"{step}.seconds" for step in steps} <= data.metrics.keys()
    assert {f"{step}.peak_gib" for step in steps} <= data.metrics.keys()
    assert len(mlflow.get_metric_history(run_id, "loss")) > 5  # type: ignore[attr-defined]
    files = {f.path for folder in ("", "finetune", "gate") for f in mlflow.list_artifacts(run_id, folder or None)}  # type: ignore[attr-defined]
    assert {"config.json", "gate/output.json", "gate/accuracy.png", "finetune/loss.png"} <= files
