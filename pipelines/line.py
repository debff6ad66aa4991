"""The line without Airflow: the same steps, in the same order, as the Dags run them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from pipelines.config import Config
from pipelines.embedded.mlflow_server import mlflow_server
from pipelines.errors import DONE, REJECTED, BadInput, StepFailed
from pipelines.launch import run_step
from pipelines.registry import Registry
from pipelines.run import Run, run_name
from pipelines.settings import Settings
from pipelines.steps import GATE, REDEPLOY, RETRAIN, Step


@contextmanager
def tracked(settings: Settings) -> Iterator[Settings]:
    """The settings with an MLflow server: the one they name, or one of our own for as long as the block runs."""
    if settings.mlflow_uri is not None:
        yield settings
        return
    with mlflow_server(settings) as uri:
        yield settings.model_copy(update={"mlflow_uri": uri})


def retrain(config: Config, name: str, settings: Settings) -> int:
    """Run every step from download to register, or go on where an earlier call stopped.

    Returns:
        The exit code: done, or rejected by the gate.

    Raises:
        StepFailed: A step ended badly.
        RunConflict: A run of that name has another config.
    """
    run = Run.create(settings.runs / run_name(name), config)
    with tracked(settings) as tracked_settings:
        return run_steps(RETRAIN, run, tracked_settings)


def promote(config: Config, version: int | None, reason: str, settings: Settings) -> int:
    """Put the approved version into service, after approving `version` if one is named."""
    with tracked(settings) as tracked_settings:
        if version is not None:
            registry = Registry(tracked_settings, config.registry.model)
            registry.approve(version, reviewer="command line", reason=reason)
        return _redeploy(config, tracked_settings)


def rollback(config: Config, reason: str, settings: Settings) -> int:
    """Put back into service what served before.

    Raises:
        BadInput: Nothing served before.
    """
    with tracked(settings) as tracked_settings:
        registry = Registry(tracked_settings, config.registry.model)
        previous = registry.by_alias("previous")
        if previous is None:
            raise BadInput(f"nothing served before the champion of {config.registry.model}; there is no way back")
        registry.approve(previous.version, reviewer="command line", reason=reason)
        return _redeploy(config, tracked_settings)


def _redeploy(config: Config, settings: Settings) -> int:
    name = f"redeploy-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    return run_steps(REDEPLOY, Run.create(settings.runs / name, config), settings)


def run_steps(steps: Sequence[Step[Any]], run: Run, settings: Settings) -> int:
    """Run steps in order, each in its environment, skipping those whose result stands."""
    console = Console(stderr=True)
    console.print(Text(f"run {run.root}"))
    for step in steps:
        if run.finished(step) and run.read(step).proceed:
            console.print(f"[dim]{step.name:<10} reused[/dim]")
            continue
        began = time.monotonic()
        console.print(f"{step.name:<10} ...")
        code = run_step(step, run.root, settings)
        if code == REJECTED:
            _explain(run, console)
            return REJECTED
        if code != DONE:
            raise StepFailed(step.name, code)
        console.print(f"{step.name:<10} [green]done[/green] in {time.monotonic() - began:.1f} s")
    return DONE


def _explain(run: Run, console: Console) -> None:
    decision = run.read(GATE)
    console.print(f"[yellow]the gate said no ({decision.outcome}), compared with {decision.reference}:[/yellow]")
    for finding in decision.findings:
        console.print(Text(f"  {finding.outcome:<12} {finding.name}: {finding.reason}"))  # brackets are no markup
