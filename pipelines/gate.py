"""May this candidate replace what serves? The step that decides it; the rules are in `pipelines.judgement`.

The rules fail closed: a missing answer, a missing slice, an unfinished answer or a report of other questions is an
objection, never a pass. A difference that the items cannot decide is inconclusive, which does not pass either.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.artifacts import Finding, GateDecision, ModelVersion
from pipelines.charts import accuracy_chart
from pipelines.config import Config
from pipelines.config_gate import Gate
from pipelines.evaluation import EvalReport
from pipelines.judgement.guards import guards
from pipelines.judgement.objections import objections
from pipelines.judgement.quality import quality
from pipelines.judgement.resources import resources
from pipelines.judgement.scenario_rules import limits, with_scenarios
from pipelines.judgement.side import Side, read_side
from pipelines.page.page import write_page
from pipelines.registry import Registry
from pipelines.sealed import Attempt, locked_splits
from pipelines.settings import Settings

log = logging.getLogger(__name__)


def gate(config: Config, folder: Path, report: EvalReport) -> GateDecision:
    """Compare the candidate with the champion, or with the base while there is no champion.

    Raises:
        Unreachable: The registry cannot say who the champion is.
        BadInput: Too many candidates were judged on these test items.
    """
    settings = Settings()
    registry = Registry(settings, config.registry.model)
    champion = registry.by_alias("champion")
    if champion is None:
        name, reference = "base", read_side(report, "base", "base")
    else:
        name = f"champion v{champion.version}"
        reference = _champion(name, champion, report) or _registered(name, champion, registry, report, folder)
    decision = judge(config.gate, report, reference, name, run=folder.parent.name, sealed=settings.sealed)
    for finding in decision.findings:
        log.info("%s %s: %s", finding.outcome.upper(), finding.name, finding.reason)
    _show(config, folder, report, reference, decision)
    return decision


def _show(config: Config, folder: Path, report: EvalReport, reference: Side | None, decision: GateDecision) -> None:
    """What people look at. A decision is noted by now and stands, also where data that nobody foresaw ends the page."""
    from jinja2 import TemplateError

    try:
        write_page(config, folder, report, reference, decision)
        accuracy_chart(report, folder / "accuracy.png")
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, TemplateError):
        log.exception("the decision stands, but there is no report of it")


def _champion(name: str, champion: ModelVersion, report: EvalReport) -> Side | None:
    """As it answered beside the candidate, if it did; another one may have been promoted since."""
    measured = report.subject("champion")
    same = measured is not None and measured.model_digest == champion.digest
    return read_side(report, "champion", name) if same else None


def _registered(name: str, champion: ModelVersion, registry: Registry, report: EvalReport, folder: Path) -> Side | None:
    """As it answered in its own run."""
    side = read_side(registry.report(champion, folder / "champion"), "candidate", name)
    output = folder.parent / "evaluate" / "output.json"
    again = f"to evaluate again, clear the task evaluate, or delete {output} and run again"
    way_out = f"{report.champion_unmeasured}; {again}" if report.champion_unmeasured else again
    return None if side is None else replace(side, way_out=way_out)


def judge(
    rules: Gate, report: EvalReport, reference: Side | None, reference_name: str, *, run: str, sealed: Path
) -> GateDecision:
    """Decide, and note the look at the sealed test items, if one was taken.

    Args:
        report: Of the candidate.
        reference: What it is compared with, if that was measured.
        run: Name under which the decision is noted.
        sealed: Folder of the notes, `Settings.sealed`.

    Raises:
        BadInput: The quota of candidates is spent.
    """
    candidate, merged = read_side(report, "candidate", "candidate"), read_side(report, "merged", "merged bf16")
    refused = objections(with_scenarios(rules, report), candidate, reference)
    if refused or candidate is None or reference is None:  # nothing is compared
        return decide(rules, candidate, reference, merged, reference_name)
    model, reference_model = candidate.evaluation.model_digest, reference.evaluation.model_digest
    with locked_splits(sealed, report) as splits:
        for split in splits:
            split.require_attempt(model, reference_model, rules.attempts)
        decision = decide(rules, candidate, reference, merged, reference_name)
        attempt = Attempt(
            time=datetime.now(UTC),
            run=run,
            model=model,
            reference=reference_name,
            reference_model=reference_model,
            outcome=decision.outcome,
        )
        for split in splits:
            split.note(attempt)
    return decision


def decide(
    rules: Gate, candidate: Side | None, reference: Side | None, merged: Side | None, reference_name: str
) -> GateDecision:
    """The gate's decision; the worst finding decides.

    Args:
        rules: Of the config; the candidate's scenarios bring their own beside them.
        candidate: As it will be served, or None if it was not measured.
        reference: What it would replace.
        merged: The merged bf16 model, where it was measured.
        reference_name: What reasons call the reference.
    """
    rules = rules if candidate is None else with_scenarios(rules, candidate.report)
    findings = objections(rules, candidate, reference)
    if not findings and candidate is not None and reference is not None:
        findings = (
            *quality(rules, candidate, reference, merged),
            *guards(rules, candidate.answers),
            *limits(rules, candidate.evaluation.metrics),
            *resources(rules, candidate, reference),
        )
    return GateDecision(outcome=_worst(findings), reference=reference_name, findings=findings)


def _worst(findings: tuple[Finding, ...]) -> str:
    outcomes = {finding.outcome for finding in findings} or {"fail"}
    return next(outcome for outcome in ("fail", "inconclusive", "pass") if outcome in outcomes)
