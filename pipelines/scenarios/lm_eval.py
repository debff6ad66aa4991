"""`vlmops scenario convert`: a task of lm-eval (lm-evaluation-harness) with local data becomes a pack.

The task is asked as any pack is, so that lost requests make the run invalid and answers are compared item by item. What
a task file says is taken as lm-eval takes it: a field's name, or else a Jinja template of the row. Code is never run,
examples are not shown, nothing is fetched; a task that needs one of these is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, JsonValue, ValidationError

from pipelines.errors import BadInput
from pipelines.scenarios.check import Findings
from pipelines.scenarios.located import line_of
from pipelines.scenarios.problem import Problem
from pipelines.scenarios.writing import Row, write_pack
from pipelines.section import Section

SPECIAL = re.compile(r"<\|.*\|>|</s>")
"""Texts in `until` that stand for the end of a turn: the engine stops there anyway."""

PLACEHOLDER = "<image>"
"""Where the text says that an image is; all are shown before the text."""


class Metric(Section):
    """An entry of `metric_list`."""

    metric: Literal["exact_match", "anls"]
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True
    ignore_case: bool = False
    ignore_punctuation: bool = False

    @property
    def scorer(self) -> dict[str, JsonValue]:
        """The scorer that is the same."""
        if self.metric == "anls":
            return {"name": "anls"}
        if self.ignore_case != self.ignore_punctuation:
            raise BadInput("metric_list: exact_match ignores case and punctuation, or neither; say both or none")
        return {"name": "text" if self.ignore_case else "exact"}


class Generation(Section):
    """`generation_kwargs`: greedy, as every measurement."""

    until: tuple[str, ...] = ()
    max_gen_toks: int = Field(256, ge=1)
    do_sample: Literal[False] = False
    temperature: float = Field(0.0, ge=0, le=0)


class DataFiles(Section):
    """`dataset_kwargs`."""

    data_files: str | dict[str, str]


class Task(Section):
    """What we take of a task file; anything else is refused, as it would change what is asked."""

    task: str
    dataset_path: Literal["json"]
    dataset_name: None = None
    dataset_kwargs: DataFiles
    output_type: Literal["generate_until"] = "generate_until"
    test_split: str = "test"
    doc_to_text: str
    doc_to_target: str
    doc_to_image: str | tuple[str, ...] = ()
    description: str = ""
    num_fewshot: Literal[0] = 0
    repeats: Literal[1] = 1
    generation_kwargs: Generation = Generation()
    metric_list: tuple[Metric, ...] = Field(min_length=1, max_length=1)
    tag: JsonValue = None
    metadata: JsonValue = None
    target_delimiter: str = " "
    """Between a question and an answer that is shown as an example: none is. The same holds of the next."""

    fewshot_delimiter: str = "\n\n"


def convert_task(file: Path, margin: float, out: Path) -> Findings:
    """Write a pack of one slice.

    Args:
        file: The task's YAML. Data files are named from its folder, images from the data file's.
        margin: Largest loss that the gate tolerates, as a share of the items.
        out: The pack's folder; it may not exist yet.

    Raises:
        BadInput: The task needs what we do not do, or something is wrong with a row; lists every problem.
    """
    task = _read_task(file)
    data = file.parent / _data_file(task)
    name = re.sub(r"[^a-z0-9_-]", "-", task.task.lower())
    pack = {
        "name": name,
        "description": f"lm-eval task {task.task}, converted from {file.name}.",
        "images": {"source": data.name, "license": "not said; write here what you may do with them"},
        "slices": {
            "items": {
                "scorer": task.metric_list[0].scorer,
                "gate": {"margin": margin},
                "max_new_tokens": task.generation_kwargs.max_gen_toks,
                "stop": [text for text in task.generation_kwargs.until if not SPECIAL.fullmatch(text)],
            }
        },
    }
    return write_pack(pack, list(_rows(task, data)), data, data.parent, out)


def _read_task(file: Path) -> Task:
    try:
        text = file.read_text(encoding="utf-8")
        return Task.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:  # of a tag such as !function, too
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{file.name}:{line}: {error.problem}; a task's code is not run") from None
    except ValidationError as error:
        problems = [_problem(file, text, told["loc"], told["msg"]) for told in error.errors(include_url=False)]
        raise BadInput("\n  ".join([f"{file}: {len(problems)} problem(s)", *map(str, sorted(problems))])) from None


def _problem(file: Path, text: str, location: tuple[str | int, ...], message: str) -> Problem:
    return Problem(file.name, line_of(text, location), f"{'.'.join(map(str, location)) or 'task'}: {message}")


def _data_file(task: Task) -> str:
    files = task.dataset_kwargs.data_files
    if isinstance(files, str):
        return files
    if task.test_split not in files:
        raise BadInput(f"dataset_kwargs.data_files: no split {task.test_split}; there are {', '.join(files)}")
    return files[task.test_split]


def _rows(task: Task, data: Path) -> Iterator[Row]:
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    for line, document in _documents(data):
        try:
            prompt = str(_field(environment, task.doc_to_text, document)).replace(PLACEHOLDER, "").strip()
            target = _field(environment, task.doc_to_target, document)
            images = _images(environment, task.doc_to_image, document)
        except (TemplateError, TypeError, ArithmeticError) as error:
            raise BadInput(f"{data.name}:{line}: {error}; correct the task's template or the row") from None
        item: dict[str, JsonValue] = {"id": f"doc-{line:05d}", "slice": "items", "prompt": prompt}
        item["expected"] = [str(each) for each in target] if isinstance(target, list) else str(target)
        yield Row(line, images, item | ({"system": task.description} if task.description.strip() else {}))


def _documents(data: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their line, or their place in a JSON array."""
    try:
        text = data.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            documents = list(enumerate(json.loads(text), 1))
        else:
            documents = [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    except OSError as error:
        raise BadInput(f"{data} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{data} is no JSON: {error}") from None
    for line, document in documents:
        if not isinstance(document, dict):
            raise BadInput(f"{data.name}:{line}: a row is an object, this is {type(document).__name__}")
        yield line, document


def _field(environment: SandboxedEnvironment, told: str, document: Mapping[str, Any]) -> Any:
    """A field of the row by its name, or else a template of the row."""
    return document[told] if told in document else environment.from_string(told).render(document)


def _images(
    environment: SandboxedEnvironment, told: str | Sequence[str], document: Mapping[str, Any]
) -> tuple[str, ...]:
    found = [_field(environment, each, document) for each in ([told] if isinstance(told, str) else told)]
    flat = [inner for each in found for inner in (each if isinstance(each, list) else [each])]
    return tuple(str(path) for path in flat if path is not None)
