"""Writes `report.html`: gathers what a run's directory says about a candidate, and fills the templates.

Nothing in it is trusted: answers, prompts and names are escaped, and the page forbids itself scripts and requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.artifacts import Adapter, GateDecision
from pipelines.charts import SCHEME_LABELS
from pipelines.config import Config
from pipelines.evaluation import EvalReport
from pipelines.judgement.side import Side
from pipelines.page import quality, wording
from pipelines.page.changes import Change, Changes, changes, dealt, items_of
from pipelines.page.drawing import Picture
from pipelines.page.latency import alike, latency_chart
from pipelines.page.lineage import origins, result
from pipelines.page.parity import forms
from pipelines.page.place import FILE
from pipelines.page.questions import Asked, asked_packs, asked_rows
from pipelines.page.sides import Column, column, columns, overall
from pipelines.page.thumbnails import Thumbnail, thumbnail
from pipelines.page.training import loss_chart, memory, memory_chart, read_loss
from pipelines.run import Run
from pipelines.steps import EXPORT, FINETUNE, PREPARE
from pipelines.system.durable import write_text

MOST_IMAGES = 4
"""Of one question."""

WORDS: Mapping[str, Any] = {"wording": wording, "overall": overall, "size": wording.size, "scheme": SCHEME_LABELS.get}
"""What templates may call."""


@dataclass(frozen=True)
class Card:
    """A changed answer as it is shown."""

    change: Change
    prompt: str | None
    """None where the data set is not there any more."""

    images: tuple[Thumbnail, ...]
    more_images: int


@dataclass(frozen=True)
class Gallery:
    """Changed answers of one kind, or as many of them as the page has room for."""

    kind: str
    cards: tuple[Card, ...]
    total: int


def write_page(
    config: Config, folder: Path, report: EvalReport, reference: Side | None, decision: GateDecision
) -> Path:
    """Write the page and its pictures into the gate's folder, and return the page.

    Args:
        folder: Of the step `gate`; the other steps of its run lie beside it, and what is not there is not shown.
        reference: What the candidate was compared with, if that was measured.
    """
    (folder / FILE).unlink(missing_ok=True)  # one of an earlier attempt would show another decision
    run, models = Run(folder.parent), columns(report, reference)
    facts = {
        "config": config,
        "run": run,
        "report": report,
        "decision": decision,
        "models": models,
        "written": datetime.now(UTC),
        **_quality(config, folder, models, decision),
        **_answers(config, run, models, reference),
        **_training(run, folder, report),
        **_serving(run, folder, models, report),
    }
    write_text(folder / FILE, render(facts))
    return folder / FILE


def render(facts: Mapping[str, Any]) -> str:
    """The page's text.

    Raises:
        jinja2.UndefinedError: A template names what is not among the facts.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("pipelines.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": wording.percent, "points": wording.points, "breakable": wording.breakable}
    return templates.get_template("report.html.jinja").render({**facts, **WORDS})


def _quality(config: Config, folder: Path, models: Sequence[Column], decision: GateDecision) -> dict[str, Any]:
    table = quality.rows(models, decision)
    findings = wording.worst_first(decision.findings)
    return {
        "findings": findings,
        "limits": tuple(finding for finding in findings if not quality.is_quality(finding, models)),
        "rows": table,
        "graded": any(score and score.correct % 1 for row in table for score in row.scores),
        "scheme_cost": next((finding for finding in findings if finding.name == quality.SCHEME), None),
        "difference": quality.difference_chart(folder, decision, config.gate.confidence),
        "shares": quality.share_chart(folder, models, table),
        "metrics": sorted({name for model in models for name in model.evaluation.metrics}),
    }


def _answers(config: Config, run: Run, models: tuple[Column, ...], reference: Side | None) -> dict[str, Any]:
    candidate = column(models, "candidate")
    if candidate is None or reference is None:
        return {"changes": None, "galleries": ()}
    found = changes(candidate.side, reference)
    chosen = {"Broken": dealt(found.broken), "Fixed": dealt(found.fixed)}
    items = items_of([change for shown in chosen.values() for change in shown])
    data = result(run, PREPARE)
    questions = {
        **asked_rows(data.path if data else None, items),
        **asked_packs(config.evaluate.scenarios, candidate.side.report.scenarios, items),
    }
    return {"changes": found, "galleries": _galleries(found, chosen, questions)}


def _galleries(
    found: Changes, chosen: Mapping[str, Sequence[Change]], questions: Mapping[str, Asked]
) -> tuple[Gallery, ...]:
    totals = {"Broken": len(found.broken), "Fixed": len(found.fixed)}
    return tuple(
        Gallery(kind, tuple(_card(change, questions.get(change.after.item)) for change in shown), totals[kind])
        for kind, shown in chosen.items()
    )


def _card(change: Change, question: Asked | None) -> Card:
    if question is None:
        return Card(change, None, (), 0)
    shown = question.images[:MOST_IMAGES]
    return Card(change, question.prompt, tuple(map(thumbnail, shown)), len(question.images) - len(shown))


def _training(run: Run, folder: Path, report: EvalReport) -> dict[str, Any]:
    adapter, candidate = result(run, FINETUNE), report.subject("candidate")
    measured = memory(run, adapter, candidate.peak_gib if candidate else None)
    return {
        "adapter": adapter,
        "loss": _loss(run, folder, adapter),
        "memory": measured,
        "memory_chart": memory_chart(folder, measured) if measured else None,
    }


def _loss(run: Run, folder: Path, adapter: Adapter | None) -> Picture | None:
    curves = read_loss(run.folder(FINETUNE) / "history.jsonl")
    return loss_chart(folder, curves, adapter) if curves and adapter else None


def _serving(run: Run, folder: Path, models: tuple[Column, ...], report: EvalReport) -> dict[str, Any]:
    model = result(run, EXPORT)
    timed = alike(models)
    return {
        "exported": model,
        "timed": timed,
        "latency": latency_chart(folder, timed),
        "forms": forms(model, report),
        "origins": origins(run, report),
    }
