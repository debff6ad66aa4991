"""Which model stands for a scheme: what the line has exported, what `vlmops export` left, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.comparison.compare import compare
from pipelines.comparison.contenders import Model, NoExport, exported
from pipelines.config import Config
from pipelines.errors import BadInput
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import EXPORT
from pipelines.system.manifest import write_manifest
from tests.pipelines.finished_run import evaluated_run


@pytest.fixture
def run(settings: Settings, smoke: Config) -> Run:
    """One that has exported nothing."""
    return Run.create(settings.runs / "bare", smoke)


def written(run: Run, scheme: str, group_size: int | None) -> Model:
    """An export as `vlmops export` leaves it, its weights apart."""
    folder = run.root / "exports" / scheme
    folder.mkdir(parents=True)
    return Model(folder, write_manifest(folder, group_size=group_size))


def test_an_export_that_is_there_is_used(run: Run, settings: Settings) -> None:
    made = written(run, "bf16", None)
    assert exported(run, "bf16", run.config, settings) == made
    assert exported(run, "fp16", run.config, settings) == made


def test_what_the_line_exported_is_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated_run(settings, "done", "digits")
    monkeypatch.setattr(Run, "finished", lambda _, step: step is EXPORT)
    made = run.read(EXPORT)
    assert exported(run, "int8_w8a8", run.config, settings) == Model(made.path, made.digest)


def test_an_export_with_other_groups_is_not_taken_for_it(run: Run, settings: Settings) -> None:
    written(run, "int4_w4a16", 32)
    with pytest.raises(NoExport, match="has groups of 32, not of 128"):
        exported(run, "int4_w4a16", run.config, settings)


def test_a_calibrated_scheme_needs_its_environment(run: Run, settings: Settings) -> None:
    bare = settings.model_copy(update={"quantize_python": None})
    with pytest.raises(NoExport, match="make quantize-env"):
        exported(run, "gptq_int4", run.config, bare)


def test_what_the_model_is_cannot_be_set_for_a_run(run: Run, settings: Settings) -> None:
    with pytest.raises(BadInput, match=r"--set lora.rank=4: the run has its model already"):
        compare(run.root, ("bf16",), None, None, ("load.requests=5", "lora.rank=4"), settings)


def test_a_run_that_is_not_trained_is_refused(settings: Settings, run: Run) -> None:
    with pytest.raises(BadInput, match="finetune has not finished"):
        compare(run.root, ("bf16",), None, None, (), settings)


@pytest.mark.parametrize("questions", [0, -1])
def test_no_questions_are_refused(questions: int, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a number from 1 on"):
        compare(tmp_path, ("bf16",), None, questions, (), settings)
