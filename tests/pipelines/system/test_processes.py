"""What is started in a group ends with it, and a wait ends at its deadline."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.errors import EngineFailed, MachineUnfit
from pipelines.system.processes import free_port, require_free_port, running, start, stop, tail, wait_until

PARENT = """
import signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn])
print(child.pid, flush=True)
time.sleep(600)
"""


def child_pid(log: Path) -> int:
    wait_until(lambda: log.read_text().strip() != "", 30, lambda: EngineFailed("no child"))
    return int(log.read_text())


def test_a_group_ends_with_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running([sys.executable, "-c", PARENT], log) as process:
        pid = child_pid(log)
        assert psutil.pid_exists(pid)
        stop(process.pid, grace_seconds=1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert process.returncode is not None


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import sys, time; from pathlib import Path; from pipelines.system.processes import start;"
        "child = start([sys.executable, '-c', 'import time; time.sleep(600)'], Path(sys.argv[1]), outlives_us=False);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(log)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_stopping_what_is_gone_is_no_error(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", ""], tmp_path / "log")
    process.wait()
    stop(process.pid)


def test_the_environment_reaches_the_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start([sys.executable, "-c", "import os; print(os.environ['MARK'])"], log, {"MARK": "here"}).wait()
    assert tail(log) == "here"


def test_a_taken_port_is_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(MachineUnfit, match=rf"port {port} \(vLLM\) is taken"):
            require_free_port(port, "vLLM")
    require_free_port(free_port(), "vLLM")


def test_a_wait_ends_at_its_deadline() -> None:
    with pytest.raises(EngineFailed, match="never"):
        wait_until(lambda: False, 0.3, lambda: EngineFailed("never"), interval=0.05)
    assert wait_until(lambda: True, 1, lambda: EngineFailed("never")) < 1
