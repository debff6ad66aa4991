"""What the demo ends with: accuracies, gains, sizes, reasons, versions and times, read from the run directories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.answers import read_answers
from pipelines.charts import SCHEME_LABELS
from pipelines.evaluation import EvalReport, Evaluation, Score
from pipelines.page.place import page_of
from pipelines.parity import Agreement, Parity
from pipelines.run import Run
from pipelines.steps import EVALUATE, EXPORT, GATE, REDEPLOY, RETRAIN, Step


def print_report(console: Console, accepted: Run, refused: Run, redeployed: Run, aliases: Mapping[str, int]) -> None:
    """Print every table.

    Args:
        aliases: Of the registered model, with their versions.
    """
    report = accepted.read(EVALUATE)
    console.print(accuracy_table(report, refused.read(EVALUATE)))
    for title, run in (("first run", accepted), ("without the replay of older tasks", refused)):
        console.print(reasons_table(title, run))
    console.print(files_table(accepted, report))
    if (parity := accepted.read(EXPORT).parity) is not None:
        console.print(predictions_table(parity, report.served_parity))
    console.print(Text(f"versions of {accepted.config.registry.model}: {aliases_line(aliases)}"))
    for title, run in (("accepted", accepted), ("refused", refused)):
        if (page := page_of(run)) is not None:
            console.print(Text(f"report of the {title} candidate: {page}"), soft_wrap=True)
    console.print(seconds_table((accepted, RETRAIN), (redeployed, REDEPLOY), (refused, RETRAIN)))


def accuracy_table(report: EvalReport, forgetful: EvalReport) -> Table:
    """Right answers per slice with 95 % intervals, as each model was served."""
    table = Table(title="right answers on the held-out test split, with 95 % intervals")
    columns = {
        f"base {_scheme(report, 'base')}": report.subject("base"),
        "merged bf16": report.subject("merged"),
        f"candidate {_scheme(report, 'candidate')}": report.subject("candidate"),
        "without replay": forgetful.subject("candidate"),
    }
    for column in ("slice", "n", *columns):
        table.add_column(column)
    slices = sorted({name for evaluation in columns.values() if evaluation for name in evaluation.scores})
    for name in slices:
        scores = [evaluation.scores.get(name) if evaluation else None for evaluation in columns.values()]
        n = next(str(score.n) for score in scores if score)
        table.add_row(Text(name), n, *map(_share, scores))
    return table


def reasons_table(title: str, run: Run) -> Table:
    """What the gate found in one run: the gain with its one-sided bounds on each slice, and the cost of the scheme."""
    decision = run.read(GATE)
    table = Table("slice", "outcome", "reason", title=f"gate, {title}: {decision.outcome} against {decision.reference}")
    for finding in decision.findings:
        style = {"pass": "green", "fail": "red"}.get(finding.outcome, "yellow")
        table.add_row(Text(finding.name), Text(finding.outcome, style), Text(finding.reason))
    return table


def files_table(run: Run, report: EvalReport) -> Table:
    """What the scheme saves, and how often its model says the same as the merged bf16 model."""
    model = run.read(EXPORT)
    scheme = SCHEME_LABELS[model.scheme]
    table = Table("files", "size", "agreement with merged bf16", title=f"what {scheme} saves, and what it costs")
    merged, candidate = report.subject("merged"), report.subject("candidate")
    if merged is not None and model.merged_bytes is not None:
        table.add_row("merged bf16", _size(model.merged_bytes), "")
    agreement = agreement_text(candidate, merged) if candidate and merged else "not measured"
    table.add_row(scheme, _size(model.size_bytes), agreement)
    return table


def predictions_table(parity: Parity, served: Agreement | None) -> Table:
    """How far each form of the fine-tuned model predicts otherwise than base and adapter do in bf16."""
    table = Table(title=f"predictions of answer tokens on {parity.prompts} rows, against base and adapter in bf16")
    for column in ("model", "mean KL, nats", "largest", "the same likeliest token"):
        table.add_column(column)
    forms = {
        "base without the adapter": parity.base,
        "as trained: base in NF4": parity.nf4,
        "merged": parity.merged,
        "exported files": parity.exported,
        "served by the engine": served,
    }
    for name, found in forms.items():
        if found is not None:
            top1 = f"{found.top1:.1%} of {found.positions}"
            table.add_row(name, f"{found.mean_kl:.2e}", f"{found.max_kl:.2e}", top1)
    return table


def agreement_text(one: Evaluation, other: Evaluation) -> str:
    """Share of the questions that two models answered in the same words."""
    ours, theirs = read_answers(one.answers), read_answers(other.answers)
    common = ours.keys() & theirs.keys()
    same = sum(ours[item].text == theirs[item].text for item in common)
    return f"{same} of {len(common)} answers the same ({same / len(common):.1%})" if common else "no common question"


def aliases_line(aliases: Mapping[str, int]) -> str:
    """Each alias with its version."""
    return ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items()))


def seconds_table(*runs: tuple[Run, Sequence[Step[Any]]]) -> Table:
    """How long each finished step took, without Airflow's share."""
    table = Table("run", "step", "seconds", "peak GiB", title="seconds per step")
    for run, steps in runs:
        for step in steps:
            if run.finished(step):
                record = run.record(step)
                table.add_row(run.name.partition("-")[0], step.name, f"{record.seconds:.1f}", f"{record.peak_gib:.2f}")
    return table


def failed_slices(run: Run) -> Iterable[str]:
    """The slices on which the gate said no."""
    return [finding.name for finding in run.read(GATE).findings if finding.outcome == "fail"]


def _scheme(report: EvalReport, subject: str) -> str:
    evaluation = report.subject(subject)
    return SCHEME_LABELS[evaluation.scheme] if evaluation else ""


def _share(score: Score | None) -> str:
    return f"{score.share:.1%} ({score.low:.1%} to {score.high:.1%})" if score else "not measured"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
