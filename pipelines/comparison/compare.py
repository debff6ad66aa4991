"""`vlmops compare`: every scheme exported, served, measured; then tables, a picture, and a copy in MLflow."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipelines.budget.base import Base, read_base
from pipelines.comparison.chart import draw_comparison
from pipelines.comparison.contenders import Model, exported
from pipelines.comparison.found import Comparison, Row
from pipelines.comparison.planned import plan_of, stored_gib
from pipelines.comparison.published import publish_comparison
from pipelines.comparison.rows import CONTENDER, FAILURE, MEASURED, Contender, Contestant, Failure, Measured
from pipelines.comparison.table import csv_of, markdown_of, show_tables
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import DONE, FAILED, BadInput, EvaluationInvalid, RunConflict, StepFailed, VlmopsError
from pipelines.launch import run_module
from pipelines.line import run_steps
from pipelines.run import Run, run_name
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE
from pipelines.system.durable import write_text

SERVED = ("hardware", "serving", "evaluate", "load", "export")
"""Sections that may differ from the run's: they decide how its model is served and measured, not what it is."""


def compare(
    target: Path,
    names: Sequence[Contestant],
    out: Path | None,
    questions: int | None,
    overrides: Sequence[str],
    settings: Settings,
) -> int:
    """Compare the fine-tuned model of a run in several schemes.

    Args:
        target: Directory of a run, or a config: its run is made up to `finetune` if it is not there.
        names: The schemes, in the order of the table.
        out: Folder of the results; RUN/compare by default.
        questions: So many of the test questions; None: all.
        overrides: `section.field=value` each, of the sections in SERVED.
        settings: Of the machine.

    Returns:
        The exit code: a failure if a scheme lacks figures for another reason than that it does not fit.

    Raises:
        BadInput: There is no such run, it is not trained, or an override would change what its model is.
        RunConflict: Another comparison writes to the same folder.
        StepFailed: A step of the run ended badly.
    """
    if questions is not None and questions < 1:
        raise BadInput(f"--questions {questions}: a number from 1 on")
    run, config = _trained(target, overrides, settings)
    folder = (out or run.root / "compare").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    contest = _Contest(run, config, read_base(run.read(DOWNLOAD).path), folder, questions, settings)
    with _claim(folder):
        found = Comparison(run.name, config, tuple(contest.row(name) for name in dict.fromkeys(names)))
        _report(run, found, folder, settings)
    return DONE if found.complete else FAILED


def _trained(target: Path, overrides: Sequence[str], settings: Settings) -> tuple[Run, Config]:
    """The run, and its config with the overrides of how it is served."""
    served = tuple(one for one in overrides if one.split("=")[0].split(".")[0].strip() in SERVED)
    others = tuple(one for one in overrides if one not in served)
    if target.is_dir():
        run = Run.open(target.resolve())
        if others:
            raise BadInput(f"--set {others[0]}: the run has its model already; only {', '.join(SERVED)} can be set")
    else:
        run = Run.create(settings.runs / run_name(target.stem), load_config(target, others))
        run_steps((DOWNLOAD, PREPARE, FINETUNE), run, settings)
    run.read(FINETUNE)
    return run, load_config(run.root / "config.json", served)


@dataclass(frozen=True)
class _Contest:
    """What all schemes have in common."""

    run: Run
    config: Config
    base: Base
    out: Path
    questions: int | None
    settings: Settings

    def row(self, name: Contestant) -> Row:
        """Measure a scheme, or say why not."""
        planned = plan_of(name, self.config, self.base)
        if planned.objection is not None:
            return Row(name, planned, None, planned.objection, None, expected=not planned.fits_here)
        try:
            model = exported(self.run, name, self.config, self.settings)
            measured = self._measure(name, model)
        except VlmopsError as error:
            return Row(name, planned, None, str(error), None, expected=False)
        return Row(name, planned, measured, None, stored_gib(model.path), expected=True)

    def _measure(self, name: Contestant, model: Model) -> Measured:
        """In the ml environment, in a process of its own."""
        folder, data, config = self.out / name, self.run.read(PREPARE), self.config
        folder.mkdir(parents=True, exist_ok=True)
        contender = Contender(
            name=name,
            model=model.path,
            digest=model.digest,
            hardware=config.hardware,
            images=config.images,
            serving=config.serving,
            evaluate=config.evaluate,
            load=config.load,
            data=data.path,
            data_digest=data.digest,
            questions=self.questions,
        )
        write_text(folder / CONTENDER, contender.model_dump_json(indent=1))
        code = run_module(self.settings, "serving.compare", str(folder))
        if code == DONE:
            return Measured.model_validate_json((folder / MEASURED).read_text())
        if (folder / FAILURE).is_file():
            raise EvaluationInvalid(Failure.model_validate_json((folder / FAILURE).read_text()).reason)
        raise StepFailed(f"measuring {name}", code)


@contextmanager
def _claim(folder: Path) -> Iterator[None]:
    """The folder for one process at a time: two would measure each other. A dead process holds no claim."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunConflict(f"another comparison writes to {folder}; wait for it, or name another --out") from None
        yield


def _report(run: Run, found: Comparison, out: Path, settings: Settings) -> None:
    """Files first, then the screen, then MLflow: none of them needs the next."""
    write_text(out / "comparison.md", markdown_of(found))
    write_text(out / "comparison.csv", csv_of(found))
    files = [out / "comparison.md", out / "comparison.csv"]
    if found.measured:
        draw_comparison(found, out / "comparison.png")
        files.append(out / "comparison.png")
    console = Console()
    show_tables(found, console)
    console.print(Text(f"tables and picture: {out}"), soft_wrap=True)
    publish_comparison(run, found, files, settings)
