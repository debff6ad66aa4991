"""May this candidate replace what serves? The step that decides it; the rules are in `pipelines.judgement`.

The rules fail closed: a missing answer, a missing slice, an unfinished answer or a report of other questions is an
objection, never a pass. A difference that the items cannot decide is inconclusive, which does not pass either.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from pipelines.artifacts import Finding, GateDecision
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
from pipelines.sealed import Attempt, sealed_split
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
        reference = read_side(registry.report(champion, folder / "champion"), "candidate", name)
    decision = judge(config.gate, report, reference, name, run=folder.parent.name, sealed=settings.sealed)
    accuracy_chart(report, folder / "accuracy.png")
    write_page(config, folder, report, reference, decision)
    for finding in decision.findings:
        log.info("%s %s: %s", finding.outcome.upper(), finding.name, finding.reason)
    return decision


def judge(
    rules: Gate, report: EvalReport, reference: Side | None, reference_name: str, *, run: str, sealed: Path
) -> GateDecision:
    """Decide, and note the look at the sealed test items.

    Args:
        report: Of the candidate.
        reference: What it is compared with, if that was measured.
        run: Name under which the decision is noted.
        sealed: Folder of the notes, `Settings.sealed`.

    Raises:
        BadInput: The quota of candidates is spent.
    """
    candidate, merged = read_side(report, "candidate", "candidate"), read_side(report, "merged", "merged bf16")
    if candidate is None or reference is None:  # nothing is looked at
        return decide(rules, candidate, reference, merged, reference_name)
    split = sealed_split(sealed, report.test_digest)
    model, reference_model = candidate.evaluation.model_digest, reference.evaluation.model_digest
    with split.locked():
        split.require_attempt(model, reference_model, rules.attempts)
        decision = decide(rules, candidate, reference, merged, reference_name)
        split.note(
            Attempt(
                time=datetime.now(UTC),
                run=run,
                model=model,
                reference=reference_name,
                reference_model=reference_model,
                outcome=decision.outcome,
            )
        )
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
