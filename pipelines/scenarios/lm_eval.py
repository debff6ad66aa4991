"""`vlmops scenario convert`: a task of lm-eval (lm-evaluation-harness) with local data becomes a pack.

The task is asked as any pack is, so that lost requests make the run invalid and answers are compared item by item. What
a task file says is taken as lm-eval takes it: a field's name, or else a Jinja template of the row. Code is never run,
examples are not shown, nothing is fetched; a task that needs one of these is refused.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, JsonValue, ValidationError

from pipelines.errors import BadInput
from pipelines.scenarios.check import Findings
from pipelines.scenarios.located import line_of
from pipelines.scenarios.problem import Problem, bad_input
from pipelines.scenarios.writing import Row, write_pack
from pipelines.section import Section
from pipelines.strict_yaml import load_yaml

SPECIAL = re.compile(r"<\|.*\|>|</s>")
"""Texts in `until` that stand for the end of a turn: the engine stops there anyway."""

NAME = re.compile(r"[\w.-]+")
"""One word without a mark of a template names a field: as a question or an answer it would be the same in each row."""

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

    until: tuple[str, ...] | None = None
    """None: the task's `fewshot_delimiter`, as lm-eval takes it."""

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
    """Between a question and an answer that is shown as an example: none is."""

    fewshot_delimiter: str = "\n\n"
    """Between examples; it ends an answer, unless `until` says what does."""

    @property
    def stop(self) -> list[str]:
        """What ends an answer."""
        until = self.generation_kwargs.until
        texts = (self.fewshot_delimiter,) if until is None else until
        return [text for text in texts if text and not SPECIAL.fullmatch(text)]


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
                "stop": task.stop,
            }
        },
    }
    return write_pack(pack, _rows(task, data), data, data.parent, out)


def _read_task(file: Path) -> Task:
    try:
        text = file.read_text(encoding="utf-8")
        return Task.model_validate(load_yaml(text))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8: {error}") from None
    except yaml.MarkedYAMLError as error:  # of a tag such as !function, too
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{file.name}:{line}: {error.problem}; a task's code is not run") from None
    except ValidationError as error:
        problems = [_problem(file, text, told["loc"], told["msg"]) for told in error.errors(include_url=False)]
        raise bad_input(file, sorted(problems)) from None


def _problem(file: Path, text: str, location: tuple[str | int, ...], message: str) -> Problem:
    return Problem(file.name, line_of(text, location), f"{'.'.join(map(str, location)) or 'task'}: {message}")


def _data_file(task: Task) -> str:
    files = task.dataset_kwargs.data_files
    if isinstance(files, str):
        return files
    if task.test_split not in files:
        raise BadInput(f"dataset_kwargs.data_files: no split {task.test_split}; there are {', '.join(files)}")
    return files[task.test_split]


def _rows(task: Task, data: Path) -> list[Row]:
    documents = list(_documents(data))
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_said)
    reader = _Reader(environment, frozenset(field for _, document in documents for field in document))
    rows, problems = [], []
    for line, document in documents:
        try:
            rows.append(_row(task, reader, line, document))
        except FAULTS as error:
            problems.append(Problem(data.name, line, f"{error}; correct the task's template or the row"))
    if problems:
        raise bad_input(data, problems)
    return rows


FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template raises on a row that it does not fit."""


def _row(task: Task, reader: _Reader, line: int, document: Mapping[str, Any]) -> Row:
    prompt = _text("doc_to_text", reader.value(task.doc_to_text, document)).replace(PLACEHOLDER, "").strip()
    item: dict[str, JsonValue] = {"id": f"doc-{line:05d}", "slice": "items", "prompt": prompt}
    target = reader.value(task.doc_to_target, document)
    if task.doc_to_target not in reader.fields:
        target = _listed(target)
    if target == []:
        raise ValueError("doc_to_target: is [], so that no answer is right")
    of_target = partial(_text, "doc_to_target")
    item["expected"] = [of_target(each) for each in target] if isinstance(target, list) else of_target(target)
    system = {"system": task.description} if task.description.strip() else {}
    return Row(line, _images(reader, task.doc_to_image, document), item | system)


def _text(field: str, value: object) -> str:
    """What is one text, or a number that stands for one."""
    if value is None or isinstance(value, list | dict):
        raise ValueError(f"{field}: {json.dumps(value)[:80]} is no text")
    return str(value)


def _listed(rendered: str) -> str | list[Any]:
    """A template's text, or the list that it is, as lm-eval reads a target that begins and ends with brackets."""
    if not (rendered.startswith("[") and rendered.endswith("]")):
        return rendered
    try:
        value: list[Any] = ast.literal_eval(rendered)
    except (SyntaxError, ValueError):
        return rendered
    return value


def _said(value: object) -> object:
    """A value of the row within a template."""
    if value is None:
        raise ValueError("null stands where a template wants a value")
    return value


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
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{data} is no JSON that can be read: {error}") from None
    for line, document in documents:
        if not isinstance(document, dict):
            raise BadInput(f"{data.name}:{line}: a row is an object, this is {type(document).__name__}")
        yield line, document


@dataclass(frozen=True)
class _Reader:
    """Reads rows as a task tells."""

    environment: SandboxedEnvironment
    fields: frozenset[str]
    """Of any row: lm-eval takes these names for fields in every row."""

    def value(self, told: str, document: Mapping[str, Any]) -> Any:
        """A field of the row by its name, or else a template of the row."""
        if told in document:
            return document[told]
        if told in self.fields or NAME.fullmatch(told):
            raise LookupError(f"no field {told}; there are {', '.join(document) or 'none'}")
        return self.environment.from_string(told).render(document)


def _images(reader: _Reader, told: str | Sequence[str], document: Mapping[str, Any]) -> tuple[str, ...]:
    found = [reader.value(each, document) for each in ([told] if isinstance(told, str) else told)]
    flat = [inner for each in found for inner in (each if isinstance(each, list) else [each])]
    return tuple(str(path) for path in flat if path is not None)
