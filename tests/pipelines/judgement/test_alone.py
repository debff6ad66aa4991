"""`vlmops gate`: reports on disk, a table, an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.artifacts import Finding, GateDecision
from pipelines.cli import main
from pipelines.errors import BAD_INPUT, DONE, REJECTED, BadInput
from pipelines.judgement.alone import decision_table
from pipelines.reports import read_report, report_folder
from pipelines.run import Run
from pipelines.settings import ROOT, Settings
from pipelines.steps import EVALUATE
from tests.pipelines.finished_run import evaluated_run


@pytest.fixture
def run(settings: Settings) -> Run:
    """A run whose candidate is far better than its base."""
    return evaluated_run(settings, "good", "unused")


def test_a_run_is_judged_against_its_base(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(run.root)]) == DONE
    shown = " ".join(capsys.readouterr().out.split())
    assert "good against base" in shown
    assert "570 of 600 right" in shown
    assert shown.endswith("pass")


def test_two_reports_are_compared_and_a_refusal_has_its_exit_code(
    run: Run, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = evaluated_run(settings, "worse", "unused", wrong=80)
    output = str(worse.folder(EVALUATE) / "output.json")
    assert main(["gate", output, "--against", str(run.root)]) == REJECTED
    shown = " ".join(capsys.readouterr().out.split())
    assert "worse against good" in shown
    assert "surely a loss beyond 2 points" in shown


def test_another_config_may_judge(run: Run, tmp_path: Path) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text(
        json.dumps(run.config.model_dump(mode="json", exclude_none=True)).replace('"minimum": 0.85', '"minimum": 0.96')
    )
    assert main(["gate", str(run.root)]) == DONE
    assert main(["gate", str(run.root), "--config", str(strict)]) == REJECTED


def test_a_report_away_from_its_run_is_judged_by_the_default_config(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = run.folder(EVALUATE).rename(tmp_path / "evaluate")
    assert main(["gate", str(moved)]) == DONE
    assert main(["gate", str(tmp_path)]) == DONE
    assert f"rules: gate of {ROOT / 'configs' / 'smoke.yaml'}" in capsys.readouterr().out


@pytest.mark.parametrize(("place", "named"), [(".", "."), ("evaluate", "."), ("evaluate", "output.json")])
def test_a_report_that_is_named_from_inside_its_run_is_judged_by_that_runs_rules(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, named: str
) -> None:
    config = run.root / "config.json"
    config.write_text(config.read_text().replace('"minimum": 0.85', '"minimum": 0.96'))
    monkeypatch.chdir(run.root / place)
    assert main(["gate", named]) == REJECTED
    assert f"rules: gate of {config.resolve()}" in capsys.readouterr().out


def test_brackets_in_names_and_reasons_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(name="size[cm] :ok:", outcome="fail", reason="slice a[/b] lost [bold]all[/bold]")
    found = GateDecision(outcome="fail", reference="base", findings=(finding,))
    Console(width=200).print(decision_table("run [1] against base", found))
    shown = capsys.readouterr().out
    for text in ("run [1] against base", finding.name, finding.reason):
        assert text in shown


def test_the_config_of_a_run_of_another_version_is_read_for_its_gate_alone(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run.root / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"train": {"forgotten": True}}))
    assert main(["gate", str(run.root)]) == DONE
    file.write_text(json.dumps(config | {"gate": {"forgotten": True}}))
    assert main(["gate", str(run.root)]) == BAD_INPUT
    assert "gate.requirements: Field required; name the config that holds: --config" in capsys.readouterr().err


def test_looking_alone_is_a_look(run: Run, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    spent = settings.sealed / f"{'t' * 64}.jsonl"
    main(["gate", str(run.root)])
    noted = json.loads(spent.read_text())
    assert (noted["run"], noted["reference"], noted["outcome"]) == ("good", "base", "pass")
    others = [json.dumps({**noted, "model": str(number)}) for number in range(run.config.gate.attempts)]
    spent.write_text("\n".join(others) + "\n")
    assert main(["gate", str(run.root)]) == BAD_INPUT
    assert "gate.attempts is 20" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["root", "folder", "file"])
def test_a_report_is_found_by_its_run_its_folder_or_its_file(run: Run, named: str) -> None:
    folder = run.folder(EVALUATE)
    path = {"root": run.root, "folder": folder, "file": folder / "output.json"}[named]
    assert report_folder(path) == folder


def test_no_report_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(tmp_path / "none")]) == BAD_INPUT
    assert "no such report; name a run or the output.json" in capsys.readouterr().err


def test_missing_answers_are_named(run: Run) -> None:
    (run.folder(EVALUATE) / "base" / "answers.parquet").unlink()
    with pytest.raises(BadInput, match=r"base/answers\.parquet: the answers of .* are missing"):
        read_report(run.folder(EVALUATE))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            '"latency_p99_ms": 90.0',
            '"latency_p99_ms": null',
            r"evaluations\.0\.latency_p99_ms: Input should be a valid",
        ),
        ('"evaluations"', '"evaluation"', r"evaluations: Field required"),
        ("{", "", r"is no evaluation report"),
    ],
)
def test_a_report_that_is_none_is_refused_with_the_field(run: Run, old: str, new: str, why: str) -> None:
    output = run.folder(EVALUATE) / "output.json"
    text = output.read_text()
    assert old in text
    output.write_text(text.replace(old, new))
    with pytest.raises(BadInput, match=why):
        read_report(run.folder(EVALUATE))
