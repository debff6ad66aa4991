"""The champion is asked anew where its registered report answers other questions; else nothing is measured twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from pipelines.answers import read_answers
from pipelines.artifacts import Dataset, ModelVersion
from pipelines.config import Config
from pipelines.errors import BadInput, EvaluationInvalid, Unreachable
from pipelines.evaluation import EvalReport, Scenario
from pipelines.system.manifest import write_manifest
from serving.champion import with_champion
from serving.evaluate import Bench
from serving.served import Served
from serving.subjects import Subject
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker


@dataclass(frozen=True)
class Registered:
    """A registry with one champion, or none, and the report that it was registered with, if that can be read."""

    champion: ModelVersion | None
    kept: EvalReport | None

    def by_alias(self, alias: str) -> ModelVersion | None:
        assert alias == "champion"
        return self.champion

    def tags(self, number: int) -> dict[str, str]:
        assert number == 3
        return {"scheme": "int8_w8a16"}

    def report(self, version: ModelVersion, folder: Path) -> EvalReport:
        if self.kept is None:
            raise BadInput(f"{folder}: no such report")
        return self.kept


@dataclass(frozen=True)
class Evaluated:
    """A run that has measured base and candidate."""

    config: Config
    bench: Bench
    report: EvalReport
    folder: Path
    champion: Served

    @property
    def version(self) -> ModelVersion:
        return ModelVersion(
            name="m", version=3, uri=self.champion.model.as_uri(), digest=self.champion.digest, serving="{}",
            golden="/g", tracking_run="r",
        )  # fmt: skip

    @property
    def other(self) -> EvalReport:
        """A report of other questions."""
        return self.report.model_copy(update={"test_digest": "u" * 64})

    def beside(self, kept: EvalReport | None, **changes: object) -> EvalReport:
        """The report where the champion was registered with another one; `changes` are those of its version."""
        registry = Registered(self.version.model_copy(update=changes), kept)
        return with_champion(self.config, self.report, lambda: registry, self.bench.measured)

    @property
    def started(self) -> bool:
        """Whether the champion's engine was."""
        return (self.folder / "champion" / "engine.log").exists()


Evaluate = Callable[..., Evaluated]


@pytest.fixture
def evaluate(smoke: Config, make: Maker, tmp_path: Path) -> Evaluate:
    """Measures v1 as the base and v2 as the candidate of a run; v3 is the champion."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(map(_row, QUESTIONS)))
    data = Dataset(
        path=tmp_path / "data", digest="d", test_digest="t", rows={}, slices={}, rejects=(), tokens=(), visual_share=0
    )
    ours = {number: make(number, seconds=0.001) for number in (1, 2)}
    settings = smoke.evaluate.model_copy(update={"golden_items": 2})
    config = smoke.model_copy(update={"serving": make.serving, "evaluate": settings})
    made: list[Served] = []

    def run(name: str = "run", fault: str = "") -> Evaluated:
        champion = made[0] if made else make(3, fault, seconds=0.001)
        made.append(champion)
        base, candidate = Subject("base", ours[1].model, ours[1].digest, "bf16"), ours[2]
        wanted = (base, Subject("candidate", candidate.model, candidate.digest, "bf16"))
        bench = Bench(config, tmp_path / name, tmp_path / "cache", data, wanted, DOUBLE)
        return Evaluated(config, bench, bench.report(), tmp_path / name, champion)

    return run


def _row(question: str) -> str:
    asked = {"role": "user", "content": [{"type": "text", "text": question}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "answer of v2"}]}
    return json.dumps({"id": question, "slice": "s", "messages": [asked, answer]}) + "\n"


def test_where_its_report_fits_or_there_is_no_champion_nothing_is_measured(evaluate: Evaluate) -> None:
    run = evaluate()
    assert run.beside(run.report) == run.report
    assert with_champion(run.config, run.report, lambda: Registered(None, None), run.bench.measured) == run.report
    assert not run.started


@pytest.mark.parametrize(
    "changed",
    [
        {"test_digest": "u" * 64},
        {"prompt_digest": "q" * 64},
        {"engine": "vLLM 0.1"},
        {"scenarios": (Scenario(name="shop", digest="s" * 64, requirements=()),)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_registered_with_anything_else_it_is_asked_the_same(
    evaluate: Evaluate, changed: dict[str, object], no_process_left: None
) -> None:
    run = evaluate()
    report = run.beside(run.report.model_copy(update=changed))
    champion = report.subject("champion")
    assert report.evaluations[:2] == run.report.evaluations
    assert champion is not None
    assert (champion.model_digest, champion.scheme) == (run.champion.digest, "int8_w8a16")
    answers = read_answers(champion.answers)
    assert list(answers) == list(QUESTIONS)
    assert {answer.text for answer in answers.values()} == {"answer of v3"}
    assert report.champion_unmeasured is None


def test_registered_with_a_report_that_cannot_be_read_it_is_asked_too(evaluate: Evaluate) -> None:
    assert evaluate().beside(None).subject("champion") is not None


def test_it_is_measured_once_for_all_runs(evaluate: Evaluate) -> None:
    first, second = evaluate(), evaluate("second")
    measured = [run.beside(run.other).subject("champion") for run in (first, first, second)]
    assert first.started
    assert not second.started
    assert measured[0] == measured[1]
    assert {each.latency_p50_ms for each in measured if each} == {measured[0].latency_p50_ms if measured[0] else 0}


def _removed(model: Path) -> None:
    shutil.rmtree(model)


def _damaged(model: Path) -> None:
    (model / "double.json").write_text("{}")


@pytest.mark.parametrize("spoil", [_removed, _damaged])
def test_where_its_files_are_gone_the_report_says_so_and_stands(
    evaluate: Evaluate, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = evaluate()
    spoil(run.champion.model)
    report = run.beside(run.other)
    assert report.evaluations == run.report.evaluations
    assert report.champion_unmeasured is not None
    assert report.champion_unmeasured.startswith(f"champion v3 is not whole at {run.champion.model.as_uri()} (")
    assert "promote another version" in report.champion_unmeasured
    assert report.champion_unmeasured in caplog.text
    assert not run.started


def test_other_files_than_those_that_were_registered_are_not_asked(evaluate: Evaluate) -> None:
    run = evaluate()
    assert "has another manifest" in (run.beside(run.other, digest="0" * 64).champion_unmeasured or "")
    assert not run.started


def test_a_champion_elsewhere_is_not_asked(evaluate: Evaluate) -> None:
    run = evaluate()
    assert "only file:// can be served" in (run.beside(run.other, uri="s3://bucket/m").champion_unmeasured or "")


def test_a_champion_of_another_chat_template_is_not_asked(evaluate: Evaluate) -> None:
    run = evaluate()
    (run.champion.model / "chat_template.jinja").write_text("other")
    report = run.beside(run.other, digest=write_manifest(run.champion.model))
    assert "champion v3 has another chat template than the candidate" in (report.champion_unmeasured or "")
    assert not run.started


def test_without_a_registry_the_report_says_so_and_stands(evaluate: Evaluate) -> None:
    def silent() -> NoReturn:
        raise Unreachable("MLflow", "http://127.0.0.1:9", "refused")

    run = evaluate()
    report = with_champion(run.config, run.report, silent, run.bench.measured)
    assert report.evaluations == run.report.evaluations
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in (report.champion_unmeasured or "")


def test_a_champion_that_this_engine_does_not_serve_keeps_no_candidate_from_its_report(evaluate: Evaluate) -> None:
    run = evaluate(fault="dies")
    report = run.beside(run.other)
    assert report.evaluations == run.report.evaluations
    assert report.champion_unmeasured is not None
    assert report.champion_unmeasured.startswith("the engine died; the end of ")
    assert "engine.log; promote another version" in report.champion_unmeasured


def test_a_champion_that_loses_requests_makes_it_invalid(evaluate: Evaluate) -> None:
    run = evaluate(fault="drop")
    with pytest.raises(EvaluationInvalid, match=r"2 attempts(.|\n)*champion(.|\n)*1 of 6 questions have no answer"):
        run.beside(run.other)
