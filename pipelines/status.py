"""`vlmops status`: the runs there are, and one run step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.errors import BadInput
from pipelines.monitoring.place import Place
from pipelines.monitoring.show import table_of
from pipelines.page.place import page_of
from pipelines.run import Run, runs_below
from pipelines.settings import Settings
from pipelines.steps import REDEPLOY, RETRAIN, Step


def show_runs(folder: Path) -> None:
    """Print a line for each run."""
    title = Text(str(folder), "italic")
    table = Table("run", "config", "last step", "state", box=None, title=title, title_justify="left")
    for run in runs_below(folder):
        table.add_row(*map(Text, (run.name, *_summary(run))))  # names and reasons: brackets in them are no markup
    Console().print(table)


def _summary(run: Run) -> tuple[str, str, str]:
    """Source, last step and its state; a run that cannot be read hides no other."""
    try:
        return run.config.model.source, *_last(run)
    except BadInput:
        return "-", "-", "of another version of vlmops"


def show_seen(settings: Settings) -> None:
    """Print what the monitor saw last, if it ever looked."""
    place = Place.of(settings)
    if (snapshot := place.latest()) is not None:
        Console().print()
        Console().print(table_of(snapshot, place.standing()))


def show_run(run: Run) -> None:
    """Print a line for each step of a run, and where its report lies."""
    title = Text(str(run.root), "italic")
    table = Table("step", "state", "seconds", "peak GiB", box=None, title=title, title_justify="left")
    for step in _steps(run):
        done = run.finished(step)
        record = run.record(step) if done else None
        table.add_row(
            step.name,
            Text(_state(run, step)),
            f"{record.seconds:.1f}" if record else "",
            f"{record.peak_gib:.2f}" if record else "",
        )
    Console().print(table)
    if asked := run.asked():
        Console().print(Text(f"started by: {': '.join(asked.values())}"), soft_wrap=True)
    if (page := page_of(run)) is not None:
        Console().print(Text(f"report: {page}"), soft_wrap=True)


def _steps(run: Run) -> tuple[Step[Any], ...]:
    return REDEPLOY if run.folder(REDEPLOY[0]).is_dir() else RETRAIN


def _state(run: Run, step: Step[Any]) -> str:
    if failure := run.failure(step):
        return f"failed: {failure.error}: {failure.message.splitlines()[0] if failure.message else ''}"
    if not run.finished(step):
        return "-"
    return "done" if run.read(step).proceed else "said no"


def _last(run: Run) -> tuple[str, str]:
    states = [(step.name, _state(run, step)) for step in _steps(run)]
    begun = [(name, state) for name, state in states if state != "-"]
    return begun[-1] if begun else ("-", "not begun")
