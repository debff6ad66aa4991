"""Evaluation: valid as a whole or not kept, resumed subject by subject, with golden answers that tell models apart."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.answers import read_answers
from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config, Hardware
from pipelines.errors import BadInput, EngineFailed, EvaluationInvalid, ExportRejected
from pipelines.evaluation import EvalReport
from pipelines.exported import QuantizedModel
from pipelines.parity import Agreement, GoldenPrompt, Parity
from pipelines.settings import Settings
from pipelines.system.manifest import ManifestMismatch, manifest_digest, write_manifest
from serving import evaluate as evaluation
from serving import memory
from serving.evaluate import Bench
from serving.golden import choose, golden_digest, read_golden
from serving.questions import Message, Question
from serving.subjects import Subject, subjects
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker

Evaluate = Callable[..., EvalReport]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Six questions about one picture, three right for v1 and three for v2."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "x.png").write_bytes(b"png")
    with (folder / "test.jsonl").open("w") as file:
        for number, question in enumerate(QUESTIONS):
            content = [{"type": "image", "image": "images/x.png"}, {"type": "text", "text": question}]
            answer = [{"type": "text", "text": f"answer of v{1 + number % 2}"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": f"q{number}", "slice": f"s{number % 2}", "messages": messages}) + "\n")
    return Dataset(
        path=folder, digest="d", test_digest="t", rows={}, slices={}, rejects=(), tokens=(), visual_share=0.1
    )


@pytest.fixture
def evaluate(smoke: Config, make: Maker, data: Dataset, tmp_path: Path) -> Evaluate:
    """Measures v1 as the base and v2 as the candidate; both are made on first use."""

    def run(
        fault: str = "",
        *,
        folder: str = "run",
        base: Path = make.folder / "model-1",
        exported: Path | None = None,
        parity: Parity | None = None,
        hardware: Hardware | None = None,
        **behaviour: object,
    ) -> EvalReport:
        candidate = make.folder / "model-2"
        if not base.exists():
            make(1)
            make(2, fault, **behaviour)
        settings = smoke.evaluate.model_copy(update={"golden_items": 4, "concurrency": 3})
        more = {"hardware": hardware} if hardware else {}
        config = smoke.model_copy(update={"serving": make.serving, "evaluate": settings, **more})
        model = _quantized(candidate, exported).model_copy(update={"parity": parity})
        wanted = subjects(_base(base), model)
        return Bench(config, tmp_path / folder, tmp_path / "cache", data, wanted, DOUBLE).report()

    return run


def _base(path: Path) -> BaseSnapshot:
    return BaseSnapshot(path=path, source="x", revision="0" * 40, digest=manifest_digest(path), architecture="x")


def _quantized(path: Path, base: Path | None = None) -> QuantizedModel:
    return QuantizedModel(
        path=path,
        digest=manifest_digest(path),
        scheme="int8_w8a8",
        size_bytes=1,
        base_digest="b",
        adapter_digest="a",
        quantized_base_path=base,
        quantized_base_digest=manifest_digest(base) if base else None,
        merged_path=None,
        merged_digest=None,
        merged_bytes=None,
        group_size=None,
        quantized_tensors=1,
        verified_tensors=1,
        stream_seconds=1,
        mb_per_second=1,
        peak_rss_gib=1,
        relative_error=0.1,
        delta_norm=1.0,
    )


def _starts(folder: Path) -> dict[str, int]:
    """How often each subject's engine was started: it writes its model's folder to its log."""
    return {path.parent.name: 1 for path in folder.glob("*/engine.log")}


def test_report(evaluate: Evaluate, no_process_left: None) -> None:
    report = evaluate()
    base, candidate = report.evaluations
    assert (base.subject, candidate.subject) == ("base", "candidate")
    assert (candidate.scores["s1"].correct, candidate.scores["s1"].n) == (3, 3)
    assert candidate.scores["s0"].correct == 0
    assert candidate.scores["s1"].low < 1 == candidate.scores["s1"].high
    assert list(read_answers(candidate.answers)) == [f"q{number}" for number in range(6)]
    assert len({answer.cluster for answer in read_answers(candidate.answers).values()} - {None}) == 1  # one picture
    assert (report.concurrency, report.hardware) == (3, "cpu")
    assert report.data_digest == report.test_digest == "t"
    assert candidate.peak_gib > 0
    assert 0 < candidate.latency_p50_ms <= candidate.latency_p99_ms


def test_the_base_is_served_in_the_candidates_scheme(evaluate: Evaluate, make: Maker) -> None:
    published, exported = make(3, "dies").model, make(1).model
    make(2)
    base = evaluate(base=published, exported=exported).subject("base")
    assert base is not None
    assert (base.scheme, base.model_digest) == ("int8_w8a8", manifest_digest(exported))
    assert {answer.text for answer in read_answers(base.answers).values()} == {"answer of v1"}


def test_without_an_exported_base_it_is_served_as_published(evaluate: Evaluate, make: Maker) -> None:
    base = evaluate().subject("base")
    assert base is not None
    assert (base.scheme, base.model_digest) == ("bf16", manifest_digest(make.folder / "model-1"))


def test_one_scheme_s_answers_are_not_taken_for_another_s(evaluate: Evaluate, make: Maker, tmp_path: Path) -> None:
    first = evaluate().subject("base")
    second = evaluate(folder="other", exported=make.folder / "model-1").subject("base")
    assert first is not None
    assert second is not None
    assert (first.scheme, second.scheme) == ("bf16", "int8_w8a8")
    assert "base" in _starts(tmp_path / "other")


def test_golden_answers_are_self_contained(evaluate: Evaluate) -> None:
    report = evaluate()
    golden = report.golden
    items = read_golden(golden)
    assert len(items) == 4
    assert {item.answer for item in items} == {"answer of v2"}
    [image] = {part["image"] for item in items for part in item.messages[0]["content"] if part["type"] == "image"}
    assert (golden.parent / image).read_bytes() == b"png"
    assert report.golden_digest == golden_digest(golden)
    for changed, content in ((golden.parent / image, b"other"), (golden, golden.read_bytes().replace(b"v2", b"v3"))):
        kept = changed.read_bytes()
        changed.write_bytes(content)
        assert report.golden_digest != golden_digest(golden), changed
        changed.write_bytes(kept)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("drop", "1 of 6 questions have no answer"),
        ("error", "answered 500"),
        ("abort", "ended otherwise than by stop or length"),
        ("cut", r"what is no answer \(Invalid JSON: EOF"),
        ("html", r"what is no answer \(Invalid JSON.*One moment"),
        ("list", "what is no answer"),
        ("choiceless", r"what is no answer \(choices: Tuple should have at least 1 item"),
        ("mute", r"what is no answer \(choices\.0\.message: Field required"),
        ("unfinished", r"what is no answer \(choices\.0\.finish_reason: Input should be a valid string"),
        ("counted", "the engine counted 1 aborted"),
        ("exits", "could not be read"),
    ],
)
def test_lost_requests_make_it_invalid(
    fault: str, why: str, evaluate: Evaluate, tmp_path: Path, no_process_left: None
) -> None:
    with pytest.raises(EvaluationInvalid, match=f"2 attempts(.|\n)*candidate(.|\n)*{why}"):
        evaluate(fault)
    assert not (tmp_path / "run" / "candidate" / "record.json").exists()
    assert not (tmp_path / "run" / "candidate" / "answers.parquet").exists()
    assert (tmp_path / "run" / "base" / "record.json").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_restarted_engine_makes_it_invalid(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import measure
    from serving.client import Metrics

    starts = iter(range(100))
    monkeypatch.setattr(measure, "metrics", lambda _: Metrics(0, 0, 0, kv_usage=0, preemptions=0, started=next(starts)))
    with pytest.raises(EvaluationInvalid, match="was restarted"):
        evaluate()


def test_to_encode_images_is_no_part_of_any_answers_time(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Question.encoded

    def encode_slowly(question: Question) -> list[Message]:
        time.sleep(0.5)
        return encode(question)

    monkeypatch.setattr(Question, "encoded", encode_slowly)
    assert max(evaluation.latency_p99_ms for evaluation in evaluate().evaluations) < 400


def test_on_a_card_its_memory_is_watched_and_on_a_cpu_that_of_the_processes(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "card_bytes", lambda: 7 * 2**30)
    on_cpu = evaluate()
    on_card = evaluate(hardware=Hardware(name="a card", device="cuda", memory_gib=8))
    assert [done.peak_gib for done in on_card.evaluations] == [7, 7]  # the base of the CPU is not taken for it
    assert all(done.peak_gib < 7 for done in on_cpu.evaluations)
    assert (on_card.hardware, on_cpu.hardware) == ("a card", "cpu")
    assert on_card.flags != on_cpu.flags == evaluate(folder="other").flags


def test_an_engine_that_does_not_start(evaluate: Evaluate, no_process_left: None) -> None:
    with pytest.raises(EngineFailed, match=r"died(.|\n)*initialization failed"):
        evaluate("dies")


def test_a_changed_model_is_not_measured(evaluate: Evaluate, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_same_prompt", lambda *_: _tamper(make))
    with pytest.raises(ManifestMismatch):
        evaluate()


def test_the_step_looks_for_a_champion(
    evaluate: Evaluate, smoke: Config, make: Maker, data: Dataset, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate()
    monkeypatch.setattr(Bench, "report", lambda _: report)
    monkeypatch.delenv("VLMOPS_MLFLOW_URI", raising=False)
    model, given = _quantized(make.folder / "model-2"), data.model_copy(update={"digest": write_manifest(data.path)})
    found = evaluation.evaluate(smoke, settings.home, _base(make.folder / "model-1"), given, model)
    assert found.evaluations == report.evaluations
    assert "no MLflow server is named" in (found.champion_unmeasured or "")


def _tamper(make: Maker) -> str:
    (make.folder / "model-2" / "extra").write_text("x")
    return "prompt"


def test_two_chat_templates_cannot_be_compared(evaluate: Evaluate, make: Maker) -> None:
    make(1)
    (make(2).model / "chat_template.jinja").write_text("other")
    with pytest.raises(BadInput, match="chat templates differ"):
        evaluate()


def test_finished_subjects_are_not_measured_again(evaluate: Evaluate, tmp_path: Path) -> None:
    first = evaluate()
    for log in (tmp_path / "run").glob("*/engine.log"):
        log.unlink()
    assert evaluate() == first
    assert _starts(tmp_path / "run") == {}


def test_a_changed_candidate_is_measured_again_and_the_base_is_not(evaluate: Evaluate, make: Maker) -> None:
    first = evaluate()
    (make.folder / "model-2" / "more").write_text("x")
    write_manifest(make.folder / "model-2")
    second = evaluate()
    assert second.evaluations[0] == first.evaluations[0]
    assert second.evaluations[1].model_digest != first.evaluations[1].model_digest


def test_only_the_base_is_measured_once_for_all_runs(
    evaluate: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluate()
    caplog.set_level("INFO")
    second = evaluate(folder="other")
    assert set(_starts(tmp_path / "other")) == {"candidate"}  # what is judged is served and asked in its own run
    assert second.evaluations[0].scores == first.evaluations[0].scores
    assert second.evaluations[0].answers == tmp_path / "other" / "base" / "answers.parquet"
    assert "base was measured before on this machine" in caplog.text


def test_damaged_answers_are_not_taken_for_whole(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate()
    for folder in (tmp_path / "run" / "base", *(tmp_path / "cache").iterdir()):
        (folder / "answers.parquet").write_text("")
    (tmp_path / "run" / "base" / "engine.log").unlink()
    report = evaluate()
    assert _starts(tmp_path / "run") == {"base": 1, "candidate": 1}
    assert len(read_answers(report.evaluations[0].answers)) == 6


def _evaluate_and_die(evaluate: Evaluate) -> None:
    finish = Bench._measure

    def measure_and_die(bench: Bench, subject: Subject, *rest: object) -> None:
        if subject.name == "candidate":
            os.kill(os.getpid(), signal.SIGKILL)
        finish(bench, subject, *rest)

    Bench._measure = measure_and_die
    evaluate()


def test_killed_in_the_middle_it_takes_up_the_missing_subject(
    evaluate: Evaluate, make: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(1), make(2)
    killed = multiprocessing.get_context("fork").Process(target=_evaluate_and_die, args=(evaluate,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / "base" / "record.json").exists()
    assert not (tmp_path / "run" / "candidate" / "record.json").exists()
    caplog.set_level("INFO")
    assert len(evaluate().evaluations) == 2
    assert "base was already measured" in caplog.text


def test_golden_prefers_what_the_base_answers_otherwise(evaluate: Evaluate) -> None:
    report = evaluate()
    answers = tuple(read_answers(report.evaluations[1].answers).values())
    base = {answer.item: answer.text for answer in answers} | {"q4": "other"}
    chosen = choose(answers, base, 4)
    assert chosen[0].item == "q4"
    assert len(chosen) == 4
    assert choose(answers, {}, 20) == list(answers)


@pytest.fixture
def parity(tmp_path: Path) -> Parity:
    """One prompt of two tokens with an answer of one: token 3 is expected there, or else token 4."""
    asked = {"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]}
    told = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    prompt = GoldenPrompt(
        item="p0", messages=(asked, told), token_ids=(1, 2, 3), positions=(2,), top_ids=((3, 4),),
        top_logprobs=((math.log(0.9), math.log(0.05)),),
    )  # fmt: skip
    golden = tmp_path / "prompts.jsonl"
    golden.write_text(prompt.model_dump_json() + "\n")
    found = Agreement(mean_kl=1.0, max_kl=1.0, top1=0.0, positions=1)
    return Parity(
        golden=golden, prompts=1, images=0, base=found, nf4=found, merged=None, exported=found, seconds=1.0
    )  # fmt: skip


def _predictions(likeliest: int, other: int, tokens: tuple[int, ...] = (1, 2, 3, 9)) -> dict[str, object]:
    row = [[likeliest, math.log(0.88), 1], [other, math.log(0.06), 2]]
    return {"predictions": {QUESTIONS[0]: {"token_ids": tokens, "logprobs": [None, [[2, -1, 1]], row, row]}}}


def test_the_candidates_predictions_are_compared(evaluate: Evaluate, parity: Parity) -> None:
    report = evaluate(parity=parity, **_predictions(3, 4))
    base, candidate = report.evaluations
    assert base.parity is None
    assert candidate.parity == report.served_parity
    assert report.served_parity
    assert 0 < report.served_parity.mean_kl < 0.01
    assert (report.served_parity.top1, report.served_parity.positions) == (1, 1)


def test_without_prompts_nothing_is_compared(evaluate: Evaluate) -> None:
    assert evaluate().served_parity is None


def test_a_candidate_that_predicts_otherwise_is_refused_and_not_asked_again(
    evaluate: Evaluate, parity: Parity, tmp_path: Path
) -> None:
    wrong = _predictions(4, 3)
    with pytest.raises(ExportRejected, match=r"served model.*mean KL 2\.\d+ nats.*0\.05 \(max_kl\).*0\.0%"):
        evaluate(parity=parity, **wrong)
    for log in (tmp_path / "run").glob("*/engine.log"):
        log.unlink()
    with pytest.raises(ExportRejected, match="served model"):
        evaluate(parity=parity, **wrong)
    assert _starts(tmp_path / "run") == {}


def test_other_tokens_than_those_of_training_are_refused(evaluate: Evaluate, parity: Parity) -> None:
    with pytest.raises(ExportRejected, match="p0: from token 1 on the engine reads other tokens"):
        evaluate(parity=parity, **_predictions(3, 4, tokens=(1, 7, 3, 9)))


def test_an_engine_that_tells_no_probabilities_makes_it_invalid(evaluate: Evaluate, parity: Parity) -> None:
    with pytest.raises(EvaluationInvalid, match="told no probabilities"):
        evaluate(parity=parity)


def test_other_prompts_are_compared_anew(evaluate: Evaluate, parity: Parity, tmp_path: Path) -> None:
    evaluate(parity=parity, **_predictions(3, 4))
    (tmp_path / "run" / "candidate" / "engine.log").unlink()
    parity.golden.write_text(parity.golden.read_text().replace("p0", "p1"))
    evaluate(parity=parity)
    assert "candidate" in _starts(tmp_path / "run")
