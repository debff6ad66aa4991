"""MLflow holds a copy of what a run's directory says: parameters, metrics, curves, files.

The directory is the truth and `publish` can be repeated, so a server that was away loses nothing: what it missed is
published with the next step, and registration insists on it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from pipelines.budget.measured import predictions
from pipelines.errors import BadInput, Unreachable
from pipelines.history import read_history
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import STEPS, Step
from pipelines.system.durable import sha256_file, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PUBLISHED_FILES = ("*.html", "*.png", "*.json", "history.jsonl", "rejects.jsonl", "*/answers.*")
"""Of a step's folder; weights and images stay where they are."""

UNFIT = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow refuses in the name of a metric."""

LONGEST_METRIC = 250
"""MLflow refuses longer names."""

LARGEST_BATCH = 1000
"""MLflow refuses more metrics at once."""

LONGEST_PARAMETER = 500
"""MLflow refuses longer ones."""


def client(settings: Settings) -> MlflowClient:
    """A client of the MLflow server.

    Raises:
        BadInput: No address is set.
        Unreachable: Nothing answers there.
    """
    uri = address(settings)
    require_answer(uri, 10)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def address(settings: Settings) -> str:
    """Of the MLflow server.

    Raises:
        BadInput: No address is set.
    """
    if settings.mlflow_uri is None:
        raise BadInput("no MLflow server is named; set VLMOPS_MLFLOW_URI, such as http://127.0.0.1:5000")
    return settings.mlflow_uri


def require_answer(uri: str, seconds: float) -> None:
    """Make sure that an MLflow server answers: its own client would retry for minutes.

    Raises:
        Unreachable: Nothing answers within the seconds.
    """
    try:
        httpx.get(f"{uri}/health", timeout=seconds).raise_for_status()
    except httpx.HTTPError as error:
        raise Unreachable("MLflow", uri, error) from error


def publish(run: Run, settings: Settings) -> str:
    """Copy what MLflow does not hold yet, and return the id of its run.

    Raises:
        Unreachable: MLflow does not answer, or not any more.
    """
    mlflow = client(settings)
    with answering(settings):
        return _publish(mlflow, run)


def _publish(mlflow: MlflowClient, run: Run) -> str:
    run_id = _tracking_run(mlflow, run)
    published = _published(run)
    for step in STEPS.values():
        output = run.folder(step) / "output.json"
        if output.is_file() and published.get(step.name) != sha256_file(output):
            _publish_step(mlflow, run_id, run, step)
            published[step.name] = sha256_file(output)
            _write_published(run, run_id, published)
        elif (failure := run.failure(step)) is not None:
            mlflow.set_tag(run_id, f"failure.{step.name}", f"{failure.error}: {failure.message}"[:5000])
    _set_status(mlflow, run_id, run)
    return run_id


@contextmanager
def answering(settings: Settings) -> Iterator[None]:
    """Calls of an MLflow client: a server that goes away between two of them is unreachable too.

    Raises:
        Unreachable: It did.
    """
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except RestException:  # it answers, and refuses
        raise
    except MlflowException as error:
        if error.error_code != "INTERNAL_ERROR":  # what the client itself refuses has a code of its own
            raise
        raise Unreachable("MLflow", str(settings.mlflow_uri), error) from error


def log_figures(mlflow: MlflowClient, run_id: str, figures: Iterable[tuple[int, str, float]], stamp: int) -> None:
    """Log figures under names that MLflow takes, in batches that it takes.

    Args:
        figures: Step, name and value of each. Slices and classes have any name, and their figures are named for them.
        stamp: Of all of them, milliseconds since 1970.
    """
    from mlflow.entities import Metric

    metrics = [Metric(metric_name(name), value, stamp, at) for at, name, value in figures]
    for start in range(0, len(metrics), LARGEST_BATCH):
        mlflow.log_batch(run_id, metrics=metrics[start : start + LARGEST_BATCH])


def metric_name(name: str) -> str:
    """A name as MLflow takes it: also without parts that a path would lose, such as `..`."""
    parts = UNFIT.sub("_", name)[:LONGEST_METRIC].split("/")
    return "/".join(part if part.strip(".") else "_" for part in parts)


def file_address(run_id: str, path: str, settings: Settings) -> str:
    """Where a person sees a published file: on MLflow's own page, as the file's own address only saves it.

    Raises:
        Unreachable: MLflow does not answer.
    """
    mlflow = client(settings)
    with answering(settings):
        experiment = mlflow.get_run(run_id).info.experiment_id
    page = settings.mlflow_page or settings.mlflow_uri
    return f"{page}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path}"


def publish_if_reachable(run: Run, settings: Settings) -> None:
    """Publish, or leave a warning: a training must not end because a page is down."""
    try:
        publish(run, settings)
    except (Unreachable, BadInput) as error:
        log.warning("not published yet: %s", error)


def note_failure(run: Run, step: str, reason: str, settings: Settings) -> None:
    """Leave the reason of a failed step in MLflow.

    Raises:
        Unreachable: MLflow does not answer.
    """
    mlflow = client(settings)
    with answering(settings):
        mlflow.set_tag(_tracking_run(mlflow, run), f"failure.{step}", reason[:5000])


def _tracking_run(mlflow: MlflowClient, run: Run) -> str:
    """The MLflow run of a run, made on first use; found by its tag if we died before noting its id."""
    noted = run.root / "mlflow.json"
    if noted.is_file():
        run_id: str = json.loads(noted.read_text())["run_id"]
        return run_id
    name = run.config.registry.experiment
    experiment = mlflow.get_experiment_by_name(name)
    experiment_id = mlflow.create_experiment(name) if experiment is None else experiment.experiment_id
    found = mlflow.search_runs([experiment_id], f"tags.`vlmops.run` = '{run.root}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {"vlmops.run": str(run.root), **{f"vlmops.{key}": value[:5000] for key, value in run.asked().items()}}
        run_id = mlflow.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        _log_config(mlflow, run_id, run)
    _write_published(run, run_id, {})
    return run_id


def _published(run: Run) -> dict[str, str]:
    steps: dict[str, str] = json.loads((run.root / "mlflow.json").read_text())["steps"]
    return steps


def _write_published(run: Run, run_id: str, steps: dict[str, str]) -> None:
    write_text(run.root / "mlflow.json", json.dumps({"run_id": run_id, "steps": steps}))


def _log_config(mlflow: MlflowClient, run_id: str, run: Run) -> None:
    from mlflow.entities import Param

    parameters = [Param(key, value[:LONGEST_PARAMETER]) for key, value in flatten(run.config.model_dump(mode="json"))]
    mlflow.log_batch(run_id, params=parameters)
    mlflow.log_artifact(run_id, str(run.root / "config.json"))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as `section.field` and text; lists stay whole, as JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def numbers(value: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of an artifact as `step.field`; lists are files' business."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{prefix}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, float(value)


def _publish_step(mlflow: MlflowClient, run_id: str, run: Run, step: Step[Any]) -> None:
    record = run.record(step)
    values = {f"{step.name}.seconds": record.seconds, f"{step.name}.peak_gib": record.peak_gib}
    values |= dict(numbers(record.artifact, step.name))
    for evaluation in record.artifact.get("evaluations", ()):
        values |= _accuracies(evaluation)
    values |= predictions(run, step)
    # The file's own time, so that a repeated publication writes the same rows again instead of new ones.
    stamp = int((run.folder(step) / "output.json").stat().st_mtime * 1000)
    log_figures(mlflow, run_id, ((0, name, value) for name, value in values.items()), stamp)
    log_figures(mlflow, run_id, _curve(run.folder(step) / "history.jsonl"), stamp)
    for pattern in PUBLISHED_FILES:
        for path in sorted(run.folder(step).glob(pattern)):
            mlflow.log_artifact(run_id, str(path), str(path.parent.relative_to(run.root)))


def _accuracies(evaluation: dict[str, Any]) -> dict[str, float]:
    """By slice; and shares of marked answers, whose names hold the labels of classes."""
    named = {f"accuracy.{evaluation['subject']}.{name}": score for name, score in evaluation["scores"].items()}
    named |= {f"share.{evaluation['subject']}.{name}": score for name, score in evaluation.get("metrics", {}).items()}
    values: dict[str, float] = {}
    for name, score in named.items():
        values |= {name: score["correct"] / score["n"], f"{name}.low": score["low"], f"{name}.high": score["high"]}
    return values


def _curve(history: Path) -> Iterator[tuple[int, str, float]]:
    for at, event in read_history(history):
        yield from ((at, name, value) for name, value in event.items())


def _set_status(mlflow: MlflowClient, run_id: str, run: Run) -> None:
    if any(run.failure(step) for step in STEPS.values()):
        mlflow.set_terminated(run_id, "FAILED")
    elif any((run.folder(STEPS[last]) / "output.json").is_file() for last in ("gate", "register", "promote")):
        mlflow.set_terminated(run_id, "FINISHED")
