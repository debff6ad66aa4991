"""Processes that are kept alive, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.embedded.parts import PartFailed
from pipelines.system.processes import wait_until
from serving.supervise import DEATHS, Ward, supervise

SUPERVISE = """
import signal, sys
from pipelines.system.processes import end_cleanly_on_sigterm
from serving.supervise import Ward, supervise
end_cleanly_on_sigterm()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
supervise([Ward("first", sleep, {}), Ward("second", sleep, {})])
"""


def never() -> AssertionError:
    return AssertionError("waited in vain")


def start() -> tuple[psutil.Process, list[psutil.Process]]:
    supervisor = psutil.Process(subprocess.Popen([sys.executable, "-c", SUPERVISE]).pid)
    wait_until(lambda: len(supervisor.children()) == 2, 20, never, 0.05)
    return supervisor, supervisor.children()


def test_whoever_dies_is_started_again_and_the_other_is_left_alone() -> None:
    supervisor, (first, second) = start()
    first.kill()
    wait_until(lambda: len(supervisor.children()) == 2 and first not in supervisor.children(), 10, never, 0.05)
    assert second.is_running()
    supervisor.terminate()
    assert supervisor.wait(20) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_all_end_together(number: signal.Signals) -> None:
    supervisor, children = start()
    os.kill(supervisor.pid, number)
    supervisor.wait(20)
    _, alive = psutil.wait_procs(children, 10)
    assert alive == []


def test_what_dies_again_and_again_ends_all(tmp_path: Path) -> None:
    count = tmp_path / "starts"
    dies = Ward("broken", ["bash", "-c", f"echo x >> '{count}'; exit 7"], {})
    lives = Ward("whole", ["sleep", "600"], {})
    with pytest.raises(PartFailed, match=f"broken died {DEATHS + 1} times within 60 s, the last time with exit code 7"):
        supervise([lives, dies], interval=0.01)
    assert count.read_text().count("x") == DEATHS + 1
    assert lives.process is not None
    assert lives.process.poll() is not None
