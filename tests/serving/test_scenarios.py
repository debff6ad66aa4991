"""Scenario packs are asked in the same run, scored by their own scorers, and are part of what is compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipelines.answers import read_answers
from pipelines.artifacts import Dataset
from pipelines.config import Config
from pipelines.errors import BadInput, EvaluationInvalid
from pipelines.evaluation import EvalReport, Evaluation
from pipelines.scenarios.pictures import pixel_digest
from pipelines.system.manifest import manifest_digest
from serving.evaluate import Bench
from serving.golden import read_golden
from serving.scenarios import open_scenarios
from serving.subjects import Subject
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker

LOSSY = (sys.executable, str(Path(__file__).with_name("lossy_engine.py")))
PACK: dict[str, Any] = {
    "name": "shop",
    "description": "Colours and titles.",
    "images": {"source": "drawn here", "license": "Apache-2.0"},
    "slices": {
        "colour": {
            "scorer": {"name": "classes", "labels": {"red": [], "blue": []}, "abstain": ["unsure"]},
            "gate": {"margin": 0.1},
        },
        "title": {"scorer": {"name": "anls"}, "gate": {"margin": 0.2, "minimum": 0.5}, "max_new_tokens": 5},
    },
    "limits": [{"metric": "colour/abstained", "maximum": 0.5}],
}
ASKED = [  # of the slice, the question, what is expected, what v2 answers
    ("colour", "colour 1", "red", "Red."),
    ("colour", "colour 2", "blue", "red"),
    ("colour", "colour 3", "blue", "unsure"),
    ("title", "title 1", "Alto 45", "Alto 46"),
]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Six sealed questions, and one training row with a picture."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), "white").save(folder / "images" / "x.png")
    rows = [_row(f"q{number}", question) for number, question in enumerate(QUESTIONS)]
    (folder / "test.jsonl").write_text("".join(rows))
    (folder / "train.jsonl").write_text(_row("t0", "seen before"))
    return Dataset(
        path=folder, digest="d", test_digest="t", rows={}, slices={}, rejects=(), tokens=(), visual_share=0.1
    )


def _row(item: str, question: str) -> str:
    content = [{"type": "image", "image": "images/x.png"}, {"type": "text", "text": question}]
    answer = [{"type": "text", "text": "answer of v2"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": item, "slice": "s", "messages": messages}) + "\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A pack of four items, each with a picture of its own."""
    return _write(tmp_path / "shop", ASKED)


def _write(folder: Path, asked: list[tuple[str, str, str, str]], **pack: Any) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "pack.yaml").write_text(yaml.safe_dump(PACK | pack))
    with (folder / "items.jsonl").open("w") as items:
        for number, (slice_, prompt, expected, _) in enumerate(asked):
            image = f"images/{number}.png"
            Image.new("RGB", (16, 16), (number % 256, number // 256, 0)).save(folder / image)
            item = {"id": f"i{number}", "slice": slice_, "images": [image], "prompt": prompt, "expected": expected}
            items.write(json.dumps(item) + "\n")
    return folder


Evaluate = Callable[..., EvalReport]


@pytest.fixture
def evaluate(smoke: Config, make: Maker, data: Dataset, tmp_path: Path) -> Evaluate:
    """Measures v2 as base and as candidate; it is made on first use."""

    def run(*packs: Path, program: tuple[str, ...] = DOUBLE, **behaviour: object) -> EvalReport:
        model = make.folder / "model-2"
        if not model.exists():
            told = dict.fromkeys(QUESTIONS, "answer of v2") | {q: a for _, q, _, a in ASKED}
            make(2, **{"answers": told, "seconds": 0.001, **behaviour})
        settings = smoke.evaluate.model_copy(update={"golden_items": 4, "scenarios": tuple(map(str, packs))})
        config = smoke.model_copy(update={"serving": make.serving, "evaluate": settings})
        wanted = [Subject(name, model, manifest_digest(model), "bf16") for name in ("base", "candidate")]  # type: ignore[arg-type]
        return Bench(config, tmp_path / "run", tmp_path / "cache", data, wanted, program).report()

    return run


def candidate(report: EvalReport) -> Evaluation:
    found = report.subject("candidate")
    assert found is not None
    return found


def test_packs_are_scored_by_their_own_scorers(evaluate: Evaluate, shop: Path, no_process_left: None) -> None:
    done = candidate(evaluate(shop))
    answers = read_answers(done.answers)
    assert len(answers) == len(QUESTIONS) + len(ASKED)
    assert {item: answer.score for item, answer in answers.items() if item.startswith("shop/")} == {
        "shop/i0": 1,
        "shop/i1": 0,
        "shop/i2": 0,
        "shop/i3": pytest.approx(6 / 7),
    }
    assert answers["q0"].score is None
    assert answers["q0"].correct
    assert done.scores["shop/colour"].share == pytest.approx(1 / 3)
    assert done.scores["s"].share == 1
    abstained, blue = done.metrics["shop/colour/abstained"], done.metrics["shop/colour/sensitivity/blue"]
    assert (abstained.correct, abstained.n, blue.correct, blue.n) == (1, 3, 0, 2)
    assert done.metrics["shop/colour/specificity/blue"].share == 1


def test_tokens_and_bytes_are_kept_of_every_answer(evaluate: Evaluate, shop: Path) -> None:
    answers = read_answers(candidate(evaluate(shop)).answers)
    assert {answer.prompt_tokens for answer in answers.values()} == {102}  # as the double counts: an image, two words
    assert answers["q0"].answer_tokens == 3
    assert all(500 > (answer.request_bytes or 0) > 200 for answer in answers.values())


def test_a_slice_may_say_what_ends_an_answer(evaluate: Evaluate, tmp_path: Path) -> None:
    slices = {"title": PACK["slices"]["title"] | {"stop": [" 46"]}}
    done = candidate(evaluate(_write(tmp_path / "shop", ASKED[3:], slices=slices, limits=[])))
    assert read_answers(done.answers)["shop/i0"].text == "Alto"


def test_the_report_names_packs_rules_and_another_test_split(evaluate: Evaluate, shop: Path, data: Dataset) -> None:
    report = evaluate(shop)
    [scenario] = report.scenarios
    assert [(rule.slice, rule.margin, rule.minimum) for rule in scenario.requirements] == [
        ("shop/colour", 0.1, 0.0),
        ("shop/title", 0.2, 0.5),
    ]
    assert [(limit.metric, limit.maximum) for limit in scenario.limits] == [("shop/colour/abstained", 0.5)]
    assert report.test_digest != data.test_digest
    without = evaluate()
    assert (without.test_digest, without.scenarios) == (data.test_digest, ())


def test_another_pack_is_measured_again(evaluate: Evaluate, shop: Path, tmp_path: Path) -> None:
    first = evaluate(shop)
    items = shop / "items.jsonl"
    items.write_text(items.read_text().replace('"expected": "blue"', '"expected": "red"'))
    second = evaluate(shop)
    assert second.test_digest != first.test_digest
    assert candidate(second).scores["shop/colour"].share == pytest.approx(2 / 3)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_golden_answers_are_of_the_task_itself(evaluate: Evaluate, shop: Path) -> None:
    assert {item.item[0] for item in read_golden(evaluate(shop).golden)} == {"q"}


def test_what_the_engine_refuses_is_no_lower_score(evaluate: Evaluate, shop: Path, tmp_path: Path) -> None:
    # 102 tokens and 12 for an answer fit the sealed questions; the titles' 5 do too, and a longer prompt does not.
    items = shop / "items.jsonl"
    items.write_text(items.read_text().replace('"title 1"', json.dumps("word " * 50)))
    why = r"shop/i3: the engine refuses the question.*maximum context length is 120(.|\n)*raise serving.max_model_len"
    with pytest.raises(EvaluationInvalid, match=why):
        evaluate(shop, context=120)
    assert not list((tmp_path / "run").glob("*/record.json"))


def test_a_run_that_loses_three_in_a_hundred_requests_is_invalid_twice_and_keeps_nothing(
    evaluate: Evaluate, tmp_path: Path, no_process_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    many = [("colour", f"colour {number}", "red", "red") for number in range(94)]
    big = _write(tmp_path / "big", many, slices={"colour": PACK["slices"]["colour"]})
    told = {"answers": {question: "red" for _, question, _, _ in many}}
    with pytest.raises(EvaluationInvalid, match=r"2 attempts(.|\n)*3 of 100 questions have no answer"):
        evaluate(big, program=LOSSY, **told)
    assert "measurement 1 of 2 is invalid" in caplog.text
    assert "measurement 2 of 2 is invalid" in caplog.text
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "engine.log"] == []
    assert not (tmp_path / "cache").exists()
    assert candidate(evaluate(big)).scores["shop/colour"].share == 1  # nothing is wrong with the model


@pytest.fixture
def open_packs(smoke: Config, data: Dataset) -> Callable[..., None]:
    """Opens packs for one image a request."""

    def run(*packs: Path) -> None:
        settings = smoke.evaluate.model_copy(update={"scenarios": tuple(map(str, packs))})
        open_scenarios(smoke.model_copy(update={"evaluate": settings}), data.path)

    return run


def test_an_image_that_was_trained_on_leaks(open_packs: Callable[..., None], shop: Path, data: Dataset) -> None:
    open_packs(shop)
    (data.path / "images" / "x.png").write_bytes((shop / "images" / "2.png").read_bytes())
    with pytest.raises(BadInput, match=r"1 problem\(s\)\n  shop/i2 leaks: images/2.png is trained on"):
        open_packs(shop)


def test_the_same_picture_in_another_format_leaks_too(
    open_packs: Callable[..., None], shop: Path, data: Dataset
) -> None:
    with Image.open(shop / "images" / "1.png") as image:
        name = f"images/{pixel_digest(image)[:16]}-01234567.webp"
        image.save(data.path / name, lossless=True)
    train = data.path / "train.jsonl"
    train.write_text(train.read_text().replace("images/x.png", name))
    with pytest.raises(BadInput, match="shop/i1 leaks"):
        open_packs(shop)


def test_what_an_engine_would_refuse_for_sure_is_refused_before_it_is_started(
    open_packs: Callable[..., None], tmp_path: Path
) -> None:
    slices = {"colour": PACK["slices"]["colour"] | {"max_new_tokens": 4000}}
    folder = _write(tmp_path / "shop", ASKED[:1], slices=slices)
    item = json.loads((folder / "items.jsonl").read_text()) | {"images": ["images/0.png"] * 2}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    with pytest.raises(BadInput, match=r"max_new_tokens 4000 leaves no room(.|\n)*shop/i0: shows 2 images"):
        open_packs(folder)


def test_two_packs_of_one_name_are_refused(open_packs: Callable[..., None], shop: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two packs are called shop"):
        open_packs(shop, _write(tmp_path / "other", ASKED[:1], slices={"colour": PACK["slices"]["colour"]}))


def test_an_item_that_is_called_like_a_sealed_question_is_refused(
    evaluate: Evaluate, shop: Path, data: Dataset
) -> None:
    test = data.path / "test.jsonl"
    test.write_text(test.read_text().replace('"q0"', '"shop/i0"'))
    with pytest.raises(BadInput, match="shop/i0 names 2 questions"):
        evaluate(shop)
