"""`vlmops compare` on a tiny model: exported, served by the real vLLM, measured by its own client, once."""

from __future__ import annotations

import csv
import fcntl
import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.artifact import Artifact
from pipelines.artifacts import BaseSnapshot
from pipelines.comparison.compare import compare
from pipelines.comparison.rows import CONTENDER, FAILURE, MEASURED, Contender, Failure, Measured
from pipelines.config import Config
from pipelines.config_export import Export, Parity
from pipelines.config_gate import Gate, Requirement
from pipelines.config_load import Load
from pipelines.errors import DONE, FAILED, EvaluationInvalid, RunConflict
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE, Step
from pipelines.system.manifest import manifest_digest, write_manifest
from serving.compare import kv_tokens_said, main, measure_contender, spread
from serving.questions import Question
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker
from tests.training.parts import adapted_model, store_adapter, write_source
from training.builtin.build import build_base
from training.builtin.processor import build_processor
from training.builtin.recipe import Recipe
from training.data import prepare

LOAD = ("load.concurrencies=[1]", "load.repeats=1", "load.requests=6", "load.warmup=2", "load.output_tokens=4")


@pytest.fixture
def run(smoke: Config, settings: Settings, tmp_path: Path) -> Run:
    """A run of the dense model whose training has finished, as far as its records say."""
    source = tmp_path / "source"
    source.mkdir()
    write_source(source, {"printed": 24, "colours": 12})
    train = smoke.train.model_copy(update={"steps": 1, "batch_size": 4})
    data = smoke.data.model_copy(update={"source": f"file://{source}"})
    export = Export(parity=Parity(prompts=0))
    gate = Gate(requirements=tuple(Requirement(slice=name, margin=0.1) for name in ("printed", "colours")))
    update = {"train": train, "data": data, "export": export, "gate": gate}
    run = Run.create(settings.runs / "tiny", smoke.model_copy(update=update))
    base = _base(tmp_path / "base")
    _, adapted = adapted_model(base)
    prepared = prepare(run.config, _folder(run, PREPARE), base)
    _record(run, DOWNLOAD, base)
    _record(run, PREPARE, prepared)
    _record(run, FINETUNE, store_adapter(adapted, base, tmp_path / "adapter"))
    return run


def _base(folder: Path) -> BaseSnapshot:
    build_base(Recipe("dense", steps=4, batch_size=8, pictures={"printed": 40, "colours": 12}), folder)
    digest = manifest_digest(folder)
    return BaseSnapshot(path=folder, source="file:///test", revision=digest[:40], digest=digest, architecture="x")


def _folder(run: Run, step: Step[object]) -> Path:
    run.folder(step).mkdir(parents=True, exist_ok=True)
    return run.folder(step)


def _record(run: Run, step: Step[object], artifact: Artifact) -> None:
    record = {"inputs": "", "artifact": artifact.model_dump(mode="json"), "seconds": 1, "peak_gib": 1}
    (_folder(run, step) / "output.json").write_text(json.dumps(record))


def test_schemes_are_served_and_measured_and_kept(
    run: Run, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings.model_copy(update={"quantize_python": None})
    assert compare(run.root, ("bf16", "int8_w8a8"), None, 8, LOAD, settings) == DONE
    folder = run.root / "compare"
    lines = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [line["scheme"] for line in lines] == ["bf16", "int8_w8a8"]
    bf16, int8 = lines
    assert (
        float(int8["weights_gib"])
        < float(bf16["weights_gib"])
        == pytest.approx(float(bf16["planned_weights_gib"]), rel=0.01)
    )
    assert int(bf16["kv_tokens"]) == pytest.approx(int(bf16["planned_kv_tokens"]), rel=0.01)
    assert bf16["questions"] == int8["questions"] == "8"
    assert float(int8["lower"]) <= float(int8["difference"]) <= float(int8["upper"])
    assert float(int8["concurrency-1.e2e_p50_ms"]) > float(int8["concurrency-1.ttft_p50_ms"]) > 0
    assert 0.5 < float(int8["peak_gib"]) < 8
    with Image.open(folder / "comparison.png") as picture:
        assert picture.width > 500
    assert "no attempt at the gate" in (folder / "comparison.md").read_text()
    assert not list(folder.rglob("*.jsonl"))

    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{MEASURED}")}
    assert compare(run.root, ("bf16", "int8_w8a8", "int8_w8a16", "gptq_int8"), None, 8, LOAD, settings) == FAILED
    assert {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{MEASURED}")} == before
    told = capfd.readouterr()
    assert told.err.count("already measured") == 2
    assert "gptq_int8: not measured: calibrated by llm-compressor" in told.out
    assert "int8_w8a16: not measured: cpu is a CPU" in told.out


def test_two_comparisons_do_not_share_a_folder(run: Run, settings: Settings) -> None:
    folder = run.root / "compare"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunConflict, match="another comparison writes to"):
            compare(run.root, ("bf16",), None, None, LOAD, settings)
    assert not (folder / "bf16").exists()


def contender(make: Maker, data: Path, smoke: Config, folder: Path, digest: str = "", fault: str = "") -> Path:
    """The folder of a scheme, ready to be measured with the double."""
    version = make(1, fault)
    asked = Contender(
        name="bf16", model=version.model, digest=digest or version.digest, data=data, data_digest=write_manifest(data),
        questions=None,
        hardware=smoke.hardware, images=smoke.images, serving=make.serving, evaluate=smoke.evaluate, load=smoke.load,
    )  # fmt: skip
    folder.mkdir()
    (folder / CONTENDER).write_text(asked.model_dump_json())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six test questions, each with a picture."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "x.png")
    with (folder / "test.jsonl").open("w") as file:
        for question in QUESTIONS:
            asked = [{"type": "image", "image": "x.png"}, {"type": "text", "text": question}]
            answer = [{"type": "text", "text": "answer of v1"}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": question, "slice": "s", "messages": messages}) + "\n")
    return folder


def test_a_model_that_is_not_the_one_named_is_not_served(
    make: Maker, data: Path, smoke: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = contender(make, data, smoke, tmp_path / "bf16", digest="0" * 64)
    assert main([str(folder)]) == FAILED
    reason = Failure.model_validate_json((folder / FAILURE).read_text()).reason
    assert str(make.folder) in reason
    assert reason in capsys.readouterr().err
    assert not (folder / "engine.log").exists()


def test_lost_answers_leave_no_figures(make: Maker, data: Path, smoke: Config, tmp_path: Path) -> None:
    folder = contender(make, data, smoke, tmp_path / "bf16", fault="counted")
    with pytest.raises(EvaluationInvalid, match="1 aborted or failed"):
        measure_contender(folder, DOUBLE)
    assert not (folder / MEASURED).exists()


def test_a_point_that_lost_requests_costs_its_own_figures_alone(
    make: Maker, data: Path, smoke: Config, tmp_path: Path
) -> None:
    load = Load(concurrencies=(1,), requests=2, warmup=0, repeats=1, output_tokens=40)  # the double's are shorter
    folder = contender(make, data, smoke.model_copy(update={"load": load}), tmp_path / "bf16")
    asked = Contender.model_validate_json((folder / CONTENDER).read_text())
    build_processor().save_pretrained(asked.model)
    (folder / CONTENDER).write_text(asked.model_copy(update={"digest": write_manifest(asked.model)}).model_dump_json())
    measured = measure_contender(folder, DOUBLE)
    assert Measured.model_validate_json((folder / MEASURED).read_text()) == measured
    assert "answers have" in measured.load.points[0].objections[0]
    assert measured.scores["s"].correct == 6
    began = (folder / MEASURED).stat().st_mtime_ns
    measure_contender(folder, DOUBLE)
    assert (folder / MEASURED).stat().st_mtime_ns > began, "a point without figures is measured again"


def test_questions_are_spread_over_all() -> None:
    questions = [Question(str(i), "s", (), "", Path()) for i in range(10)]
    assert [question.item for question in spread(questions, 4)] == ["0", "2", "5", "7"]
    assert spread(questions, None) == spread(questions, 99) == tuple(questions)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("INFO GPU KV cache size: 83,424 tokens\n", 83_424),
        ("INFO CPU KV cache size: 349,440 tokens, Maximum concurrency\n", 349_440),
        ("INFO something else\n", None),
    ],
)
def test_the_size_of_the_kv_cache_is_what_the_engine_says(text: str, tokens: int | None, tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text(text)
    assert kv_tokens_said(tmp_path / "engine.log") == tokens
