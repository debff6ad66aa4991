"""One way to run a step: it records what it made, why it failed, and never a half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config import Config
from pipelines.errors import BAD_INPUT, DONE, FAILED, REJECTED, DataRejected
from pipelines.execute import attempt, execute, main
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, GATE, PREPARE

CHEAP = replace(DOWNLOAD, target="tests.pipelines.cheap_steps:download")
REFUSED = replace(DOWNLOAD, target="tests.pipelines.cheap_steps:refuse")
STALLED = replace(DOWNLOAD, target="tests.pipelines.cheap_steps:stall")
SAYS_NO = replace(GATE, target="tests.pipelines.cheap_steps:say_no", needs=())


@pytest.fixture
def run(settings: Settings, smoke: Config) -> Run:
    return Run.create(settings.runs / "r", smoke)


def calls(run: Run) -> int:
    return len((run.folder(DOWNLOAD) / "calls").read_text())


def test_a_finished_step_is_reused(run: Run) -> None:
    assert execute(run, CHEAP) == execute(run, CHEAP)
    assert calls(run) == 1
    assert run.record(CHEAP).peak_gib > 0


def test_again_runs_it_again(run: Run) -> None:
    execute(run, CHEAP)
    execute(run, CHEAP, again=True)
    assert calls(run) == 2


def test_a_failure_is_recorded_and_leaves_no_result(run: Run) -> None:
    execute(run, CHEAP)
    with pytest.raises(DataRejected):
        execute(run, REFUSED, again=True)
    assert not run.finished(DOWNLOAD)
    failure = run.failure(DOWNLOAD)
    assert failure is not None
    assert (failure.error, failure.message) == ("DataRejected", "9 of 10 rows are unusable")


def test_a_step_without_its_inputs_is_bad_input(run: Run) -> None:
    assert attempt(run.root, PREPARE) == BAD_INPUT


@pytest.mark.parametrize(("step", "code"), [(CHEAP, DONE), (REFUSED, BAD_INPUT), (SAYS_NO, REJECTED)])
def test_exit_codes(run: Run, step: object, code: int) -> None:
    assert attempt(run.root, step) == code  # type: ignore[arg-type]


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    assert main([str(tmp_path), "download"]) == BAD_INPUT
    assert list(tmp_path.iterdir()) == []


def test_a_killed_step_is_done_again(run: Run) -> None:
    script = (
        "from pathlib import Path; from pipelines.execute import attempt; from pipelines.run import Run;"
        "from tests.pipelines.test_execute import STALLED; import sys; attempt(Path(sys.argv[1]), STALLED)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(run.root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not run.finished(DOWNLOAD)
    execute(run, CHEAP)  # the dead process holds no claim
    assert run.finished(DOWNLOAD)


def test_an_unexpected_error_is_a_failure(run: Run) -> None:
    broken = replace(DOWNLOAD, target="tests.pipelines.cheap_steps:nothing_of_that_name")
    with pytest.raises(AttributeError):
        execute(run, broken)
    assert run.failure(DOWNLOAD) is not None
    assert FAILED == 1
