"""Evaluation reports on disk: the folder that a step `evaluate` left, wherever it lies now."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipelines.answers import answers_file
from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport
from pipelines.run import Record


def report_folder(path: Path) -> Path:
    """The folder of a report that is named by a run, by that folder or by the `output.json` in it.

    Whole, so that its parent is its run, wherever the name is read from.
    """
    path = path.resolve()
    if path.is_file():
        return path.parent
    return path / "evaluate" if (path / "evaluate").is_dir() else path


def read_report(folder: Path) -> EvalReport:
    """The report in a folder, with the answers that lie beside it.

    Raises:
        BadInput: There is none, it is not whole, or answers are missing.
    """
    output = folder / "output.json"
    if not output.is_file():
        raise BadInput(f"{output}: no such report; name a run or the output.json of its step evaluate")
    try:
        report = EvalReport.model_validate(Record.model_validate_json(output.read_text()).artifact)
    except ValidationError as error:
        raise BadInput(f"{output} is no evaluation report: {first_problem(error)}; evaluate again") from None
    evaluations = tuple(
        evaluation.model_copy(update={"answers": answers_file(folder / evaluation.subject)})
        for evaluation in report.evaluations
    )
    if missing := [str(evaluation.answers) for evaluation in evaluations if not evaluation.answers.is_file()]:
        raise BadInput(f"{', '.join(missing)}: the answers of {output} are missing; evaluate again")
    return report.model_copy(update={"evaluations": evaluations})


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its field, on one line."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
