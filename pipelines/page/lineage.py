"""What the candidate was made of: every digest that names bytes, from the data to the served files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport
from pipelines.page.wording import size
from pipelines.run import Run
from pipelines.steps import DOWNLOAD, EXPORT, FINETUNE, PREPARE, Step, T


@dataclass(frozen=True)
class Origin:
    """One part that a candidate was made of."""

    name: str
    what: str
    digest: str | None = None


def result(run: Run, step: Step[T]) -> T | None:
    """The result of a step, or None where this run has none that we can read: the page shows what there is."""
    try:
        return run.read(step)
    except BadInput:
        return None


def origins(run: Run, report: EvalReport) -> tuple[Origin, ...]:
    """Every part, in the order in which they were made."""
    return (*_made(run), *_asked(report), *_software(run, report))


def _made(run: Run) -> Iterator[Origin]:
    if base := result(run, DOWNLOAD):
        yield Origin("base", f"{base.source}, {base.architecture}, revision {base.revision}", base.digest)
    if data := result(run, PREPARE):
        rows = ", ".join(f"{count} {split}" for split, count in data.rows.items())
        yield Origin("data", f"{run.config.data.source}: {rows}", data.digest)
    if adapter := result(run, FINETUNE):
        trained = f"{adapter.trainable_parameters:,} parameters, step {adapter.best_step} of {adapter.steps}"
        yield Origin("adapter", trained, adapter.digest)
    if model := result(run, EXPORT):
        scheme = model.scheme if model.served_base_path is None else f"adapter on the base in {model.scheme}"
        yield Origin("export", f"{scheme}, {size(model.size_bytes)}", model.digest)
        if model.served_base_digest is not None:
            yield Origin("served base", model.scheme, model.served_base_digest)


def _asked(report: EvalReport) -> Iterator[Origin]:
    yield Origin("test items", "sealed questions, images and expected answers", report.test_digest)
    yield Origin("prompt", "chat template, pixel limits and decoding", report.prompt_digest)
    for scenario in report.scenarios:
        yield Origin(f"scenario {scenario.name}", "items, images and scorers", scenario.digest)
    for evaluation in report.evaluations:
        yield Origin(f"measured {evaluation.subject}", evaluation.scheme, evaluation.model_digest)


def _software(run: Run, report: EvalReport) -> Iterator[Origin]:
    load = f", {report.concurrency} questions in flight" if report.concurrency else ""
    yield Origin("engine", f"{report.engine}{load}")
    yield Origin("vlmops", version("vlmops"))
    yield Origin("run", run.name)
    if (noted := run.root / "mlflow.json").is_file():
        yield Origin("MLflow run", json.loads(noted.read_text())["run_id"])
