"""A run is a directory: one config, results that stand only for their inputs, and nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import AlreadyRunning, BadInput, RunConflict
from pipelines.run import Run, run_name, runs_below
from pipelines.settings import ROOT
from pipelines.status import show_runs
from pipelines.steps import DOWNLOAD, PREPARE


def base(digest: str = "d") -> BaseSnapshot:
    return BaseSnapshot(path=Path("/b"), source="builtin://x", revision="0" * 40, digest=digest, architecture="A")


def dataset() -> Dataset:
    return Dataset(
        path=Path("/d"), digest="e", test_digest="t", rows={}, slices={}, rejects=(), tokens=(), visual_share=0.5
    )


@pytest.fixture
def run(tmp_path: Path, smoke: Config) -> Run:
    return Run.create(tmp_path / "r", smoke)


def finish(run: Run, digest: str = "d") -> None:
    with run.claim(DOWNLOAD):
        run.write(DOWNLOAD, base(digest), seconds=1.5, peak_gib=0.25)


def test_a_run_keeps_its_config(run: Run, smoke: Config) -> None:
    assert Run.open(run.root).config == smoke


def test_the_same_config_reopens_the_run(run: Run, smoke: Config) -> None:
    finish(run)
    assert Run.create(run.root, smoke).finished(DOWNLOAD)


def test_another_config_is_refused_and_nothing_changes(run: Run) -> None:
    before = (run.root / "config.json").read_text()
    other = load_config(ROOT / "configs" / "smoke.yaml", ("lora.rank=4",))
    with pytest.raises(RunConflict, match="another config"):
        Run.create(run.root, other)
    assert (run.root / "config.json").read_text() == before


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no run"):
        Run.open(tmp_path)


def test_a_result_is_read_back_whole(run: Run) -> None:
    finish(run)
    assert run.read(DOWNLOAD) == base()
    assert run.record(DOWNLOAD).seconds == 1.5


def test_an_unfinished_step_cannot_be_read(run: Run) -> None:
    with pytest.raises(BadInput, match="download has not finished"):
        run.read(DOWNLOAD)


def test_a_changed_input_makes_a_result_stale(run: Run) -> None:
    finish(run)
    with run.claim(PREPARE):
        run.write(PREPARE, dataset(), seconds=1, peak_gib=1)
    assert run.finished(PREPARE)
    finish(run, digest="another")
    assert not run.finished(PREPARE)


def test_the_same_result_again_keeps_what_was_made_from_it(run: Run) -> None:
    finish(run)
    with run.claim(PREPARE):
        run.write(PREPARE, dataset(), seconds=1, peak_gib=1)
    finish(run)  # other seconds, same artifact
    assert run.finished(PREPARE)


def test_a_half_written_result_is_no_result(run: Run) -> None:
    folder = run.folder(DOWNLOAD)
    folder.mkdir()
    (folder / ".output.json.partial").write_text('{"inputs": "')
    assert not run.finished(DOWNLOAD)


def test_a_result_of_another_version_is_made_again(run: Run) -> None:
    finish(run)
    output = run.folder(DOWNLOAD) / "output.json"
    output.write_text(output.read_text().replace('"revision"', '"commit"'))
    assert not run.finished(DOWNLOAD)
    with pytest.raises(BadInput, match=r"output\.json is of another version of vlmops; run download again"):
        run.read(DOWNLOAD)


def test_a_config_of_another_version_is_named_and_hides_no_other_run(
    run: Run, smoke: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    Run.create(run.root.with_name("newer"), smoke)
    file = run.root / "config.json"
    file.write_text(file.read_text().replace('"max_new_tokens"', '"longest"'))
    with pytest.raises(BadInput, match=r"of another version of vlmops \(evaluate\.longest: Extra"):
        _ = Run.open(run.root).config
    show_runs(run.root.parent)
    shown = capsys.readouterr().out
    assert "of another version of vlmops" in shown
    assert "newer" in shown


def test_a_step_runs_once_at_a_time(run: Run) -> None:
    with run.claim(DOWNLOAD), pytest.raises(AlreadyRunning, match=rf"\(process {os.getpid()}\)"), run.claim(DOWNLOAD):
        pass


def test_who_runs_a_step_is_known_for_as_long_as_it_runs(run: Run) -> None:
    assert run.claimant(DOWNLOAD) is None
    for _ in range(2):
        with run.claim(DOWNLOAD):
            assert run.claimant(DOWNLOAD) == os.getpid()
    assert run.claimant(DOWNLOAD) is None


def test_a_success_clears_the_failure(run: Run) -> None:
    with run.claim(DOWNLOAD):
        run.write_failure(DOWNLOAD, ValueError("cut at 60 %"))
        failure = run.failure(DOWNLOAD)
        assert failure is not None
        assert failure.message == "cut at 60 %"
    finish(run)
    assert run.failure(DOWNLOAD) is None


def test_runs_are_listed_from_the_oldest(tmp_path: Path, smoke: Config) -> None:
    for name in ("b", "a"):
        Run.create(tmp_path / name, smoke)
    (tmp_path / "stray").mkdir()
    assert [run.name for run in runs_below(tmp_path)] == ["b", "a"]


@given(st.text(min_size=1))
def test_a_run_name_never_leaves_its_folder(text: str) -> None:
    try:
        name = run_name(text)
    except BadInput:
        return
    assert name == Path(name).name
    assert name not in {".", ".."}
    assert not name.startswith(".")


def test_airflow_run_ids_become_names() -> None:
    assert run_name("manual__2026-11-24T05:30:00+00:00") == "manual__2026-11-24T05-30-00-00-00"
