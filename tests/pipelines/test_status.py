"""What people see of a run is what stands in it: brackets of names and reasons are no markup."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pipelines.artifacts import Finding, GateDecision
from pipelines.demo.report import reasons_table
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.status import show_run, show_runs
from pipelines.steps import DOWNLOAD, GATE
from tests.pipelines.finished_run import config, evaluated_run

REASON = "slice size[cm] :ok: lost [bold]all[/bold], see [/dev/shm]"


def shown(text: str) -> str:
    """Without the line breaks of a narrow table."""
    return "".join(text.split())


def test_a_failures_reason_is_shown_as_it_is(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(settings.runs / "broken", config("unused"))
    run.folder(DOWNLOAD).mkdir()
    run.write_failure(DOWNLOAD, ValueError(REASON))
    show_run(run)
    show_runs(settings.runs)
    assert shown(capsys.readouterr().out).count("[/dev/shm]") == 2


def test_what_started_a_run_and_why_is_shown_as_it_is(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(settings.runs / "asked", config("unused"))
    show_run(run)
    assert "started by" not in capsys.readouterr().out
    run.request.write_text(json.dumps({"dag": "retrain", "trigger": "monitoring", "reason": REASON}))
    show_run(run)
    assert f"started by: monitoring: {REASON}" in capsys.readouterr().out


def test_the_demos_reasons_are_shown_as_they_are(settings: Settings) -> None:
    run = evaluated_run(settings, "one", "unused")
    run.folder(GATE).mkdir()
    finding = Finding(name="size[cm]", outcome="fail", reason=REASON)
    run.write(GATE, GateDecision(outcome="fail", reference="base", findings=(finding,)), seconds=1, peak_gib=1)
    text = io.StringIO()
    Console(file=text, width=200).print(reasons_table("first run", run))
    assert shown(REASON) in shown(text.getvalue())
