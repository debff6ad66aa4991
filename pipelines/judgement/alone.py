"""`vlmops gate`: two evaluation reports judged without a run, shown as a table."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.artifacts import GateDecision
from pipelines.config_file import load_config
from pipelines.config_gate import Gate
from pipelines.errors import DONE, REJECTED, BadInput
from pipelines.evaluation import EvalReport
from pipelines.gate import judge
from pipelines.judgement.side import Side, read_side
from pipelines.reports import first_problem, read_report, report_folder
from pipelines.settings import Settings

STYLES = {"pass": "green", "inconclusive": "yellow", "fail": "red"}


def judge_reports(candidate: Path, against: Path | None, config: Path | None, settings: Settings) -> int:
    """Judge the candidate of one report, and print the decision.

    Args:
        candidate: A run, its folder `evaluate`, or the `output.json` in it.
        against: The same of what it would replace; None: the base of the candidate's own report.
        config: Whose section `gate` holds; None: the one of the candidate's run, else the default config.

    Returns:
        The exit code: rejected if it is not a pass.

    Raises:
        BadInput: A report or the config cannot be read, or the quota of candidates is spent.
    """
    folder = report_folder(candidate)
    report, (rules, origin) = read_report(folder), _rules(config, folder, settings)
    reference, name = _reference(report, against)
    decision = judge(rules, report, reference, name, run=folder.parent.name, sealed=settings.sealed)
    console = Console()
    console.print(decision_table(f"{folder.parent.name} against {name}", decision))
    console.print(Text(f"rules: gate of {origin}"), soft_wrap=True)
    console.print(Text(decision.outcome, STYLES[decision.outcome]))
    return DONE if decision.proceed else REJECTED


def decision_table(title: str, decision: GateDecision) -> Table:
    """A line for each finding. Names and reasons are data: brackets in them are no markup."""
    table = Table("requirement", "outcome", "reason", box=None, title=Text(title, "italic"), title_justify="left")
    for finding in decision.findings:
        table.add_row(Text(finding.name), Text(finding.outcome, STYLES[finding.outcome]), Text(finding.reason))
    return table


class _Rules(BaseModel):
    """What is read of a run's config: one of another version may have other sections than we know."""

    gate: Gate


def _rules(config: Path | None, folder: Path, settings: Settings) -> tuple[Gate, Path]:
    """The rules that hold, and the file that they are from."""
    own = folder.parent / "config.json"
    if config is not None or not own.is_file():
        named = config or settings.config
        return load_config(named).gate, named
    try:
        return _Rules.model_validate_json(own.read_text()).gate, own
    except ValidationError as error:
        raise BadInput(f"{own}: {first_problem(error)}; name the config that holds: --config FILE") from None


def _reference(report: EvalReport, against: Path | None) -> tuple[Side | None, str]:
    if against is None:
        return read_side(report, "base", "base"), "base"
    folder = report_folder(against)
    name = folder.parent.name
    return read_side(read_report(folder), "candidate", name), name
