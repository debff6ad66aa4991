"""A task of lm-eval with local data becomes a pack that asks the same; what would ask something else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipelines.cli import main
from pipelines.errors import BadInput
from pipelines.scenarios.check import open_pack
from pipelines.scenarios.lm_eval import convert_task

TASK: dict[str, Any] = {
    "task": "Shelf_VQA",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/test.jsonl"}},
    "test_split": "test",
    "doc_to_image": ["image"],
    "doc_to_text": "<image>{{question}} Answer with {{ kind }} alone.",
    "doc_to_target": "answers",
    "description": "You read shelves.",
    "generation_kwargs": {"until": ["<|im_end|>", "\n\n"], "max_gen_toks": 32, "temperature": 0.0, "do_sample": False},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "ignore_case": True, "ignore_punctuation": True},
    ],
    "metadata": {"version": 1.0},
}
ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "question": "What does it cost?", "kind": "a number", "answers": "3.49"},
    {
        "image": ["a.png", "b.png"],
        "question": "Which is cheaper?",
        "kind": "a word",
        "answers": ["left", "the left one"],
    },
]


def write(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    (folder / "data").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("L", (20, 20), 9).save(folder / "data" / name)
    (folder / "data" / "test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows))
    )
    task = {key: value for key, value in (TASK | changes).items() if value is not ...}
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder / "task.yaml"


def test_the_command_makes_a_pack_that_asks_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out = write(tmp_path / "task"), tmp_path / "pack"
    assert main(["scenario", "convert", str(task), "--margin", "0.05", "--out", str(out)]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    opened = open_pack(out)
    items = opened.pack.slices["items"]
    assert (opened.pack.name, items.scorer.name, items.max_new_tokens, items.stop) == (
        "shelf_vqa",
        "text",
        32,
        ("\n\n",),
    )
    assert opened.scenario.requirements[0].margin == 0.05
    one, two = opened.items
    assert (one.prompt, one.system) == ("What does it cost? Answer with a number alone.", "You read shelves.")
    assert (len(one.images), len(two.images)) == (1, 2)
    assert items.scorer.score("The left one.", two.expected_text).score == 1


def test_data_may_be_an_array_and_a_target_a_template(tmp_path: Path) -> None:
    task = write(tmp_path, doc_to_target="{{ answers[0] | lower }}", dataset_kwargs={"data_files": "data/all.json"})
    (tmp_path / "data" / "all.json").write_text(json.dumps([ROWS[1] | {"answers": ["LEFT"]}]))
    convert_task(task, 0.05, tmp_path / "pack")
    assert open_pack(tmp_path / "pack").items[0].expected_text == "left"


@pytest.mark.parametrize(
    ("metric", "scorer"),
    [({"metric": "exact_match"}, "exact"), ({"metric": "anls"}, "anls")],
    ids=str,
)
def test_metrics_are_scorers(metric: dict[str, Any], scorer: str, tmp_path: Path) -> None:
    convert_task(write(tmp_path, metric_list=[metric]), 0.05, tmp_path / "pack")
    assert open_pack(tmp_path / "pack").pack.slices["items"].scorer.name == scorer


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_fewshot": 5}, r"task.yaml:\d+: num_fewshot: Input should be 0"),
        ({"filter_list": [{"name": "x"}]}, r"task.yaml:\d+: filter_list: Extra inputs"),
        ({"dataset_path": "lmms-lab/DocVQA"}, r"task.yaml:2: dataset_path: Input should be 'json'"),
        ({"output_type": "multiple_choice"}, "output_type"),
        ({"generation_kwargs": {"temperature": 0.7}}, "generation_kwargs.temperature"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric_list.0.metric"),
        ({"metric_list": [{"metric": "exact_match", "ignore_case": True}]}, "case and punctuation, or neither"),
        ({"metric_list": []}, "metric_list"),
        ({"test_split": "validation"}, "no split validation; there are test"),
        ({"doc_to_text": "{{ missing }}"}, "test.jsonl:1: 'missing' is undefined"),
        ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, "test.jsonl:1: .*unsafe"),
        ({"doc_to_image": ["kind"]}, "test.jsonl:1: image 'a number' is not there"),
        ({"doc_to_target": ...}, "doc_to_target: Field required"),
        ({"doc_to_text": "query"}, "test.jsonl:1: no field query; there are image, question"),
        ({"doc_to_target": "answer"}, "test.jsonl:1: no field answer"),
        ({"doc_to_text": "{{ 'abc'.index(kind) }}"}, "test.jsonl:1: substring not found"),
        ({"doc_to_text": "answers"}, r"test.jsonl:2: doc_to_text: \[.* is no text"),
    ],
)
def test_what_would_ask_something_else_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=why):
        convert_task(write(tmp_path / "task", **changes), 0.05, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("told", "answers", "why"),
    [
        ("answers", None, "null is no text"),
        ("answers", [], r"is \[\]"),
        ("answers", ["x", None], "null is no text"),
        ("{{ answers }}", None, "null stands where"),
        ("{{ answers }}", [], r"is \[\]"),
    ],
)
def test_a_row_without_an_answer_is_refused(told: str, answers: object, why: str, tmp_path: Path) -> None:
    task = write(tmp_path / "task", [ROWS[0], ROWS[1] | {"answers": answers}], doc_to_target=told)
    with pytest.raises(BadInput, match=f"test.jsonl:2: .*{why}"):
        convert_task(task, 0.05, tmp_path / "pack")


@pytest.mark.parametrize("name", ["answers", "right answers"])
def test_a_field_that_a_row_lacks_is_told_of_every_such_row(name: str, tmp_path: Path) -> None:
    lacking = {key: value for key, value in ROWS[0].items() if key != "answers"}
    task = write(tmp_path / "task", [lacking | {name: "3.49"}, lacking, lacking], doc_to_target=name)
    with pytest.raises(BadInput, match=rf"2 problem\(s\)\n  test.jsonl:2: no field {name}(.|\n)*test.jsonl:3: "):
        convert_task(task, 0.05, tmp_path / "pack")


def test_a_list_in_a_template_is_a_list_of_right_answers(tmp_path: Path) -> None:
    convert_task(write(tmp_path, [ROWS[1]], doc_to_target="{{ answers }}"), 0.05, tmp_path / "pack")
    assert open_pack(tmp_path / "pack").items[0].expected == ["left", "the left one"]


@pytest.mark.parametrize(("told", "stop"), [({}, ("##",)), ({"until": []}, ()), ({"until": ["."]}, (".",))])
def test_an_answer_ends_where_lm_eval_ends_it(told: dict[str, Any], stop: tuple[str, ...], tmp_path: Path) -> None:
    task = write(tmp_path, generation_kwargs=told, fewshot_delimiter="##")
    convert_task(task, 0.05, tmp_path / "pack")
    assert open_pack(tmp_path / "pack").pack.slices["items"].stop == stop


def test_code_is_not_run(tmp_path: Path) -> None:
    task = write(tmp_path)
    task.write_text(task.read_text() + "process_docs: !function utils.process\n")
    with pytest.raises(BadInput, match=r"task.yaml:\d+: .*!function.*a task's code is not run"):
        convert_task(task, 0.05, tmp_path / "pack")
