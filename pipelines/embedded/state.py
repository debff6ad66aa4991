"""Who runs the stack of a state folder: `stack.lock`, held while it lives, and `stack.json`, what it started.

The lock tells the living from the dead. After a crash of the launcher the file says what it left behind, and every
process that descends from it carries the stack's mark in its environment, however many sessions lie between.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from pipelines.errors import MachineUnfit
from pipelines.system.durable import write_text

MARK = "VLMOPS_STACK"
"""Environment variable of every process of a stack; its value is the stack's mark."""

MARKING = {"SPT_NOENV": "1"}
"""Airflow and vLLM rename their processes, which writes over the environment that others see unless this is set."""


LOCK = "stack.lock"


class StackState(BaseModel):
    """What `stack.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    """The launcher."""

    mark: str
    airflow_url: str
    mlflow_url: str
    front_url: str


@contextmanager
def sole_stack(state: Path) -> Iterator[None]:
    """Be the only stack of a state folder.

    Raises:
        MachineUnfit: Another launcher holds it; names its process.
    """
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    with (state / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read_state(state)
            who = f"process {holder.pid}" if holder else "another process"
            raise MachineUnfit(f"a stack of {state} is running ({who}); stop it, or set another VLMOPS_HOME") from None
        yield


def running_stack(state: Path) -> StackState | None:
    """The stack that runs on a state folder now, or None."""
    path = state / LOCK
    if not path.is_file():
        return None
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_state(state)
    return None


def read_state(state: Path) -> StackState | None:
    """What the last stack wrote down, or None."""
    path = state / "stack.json"
    return StackState.model_validate_json(path.read_text()) if path.is_file() else None


def write_state(state: Path, stack: StackState) -> None:
    """Write down what is about to be started: before it is, so that a crash finds it."""
    write_text(state / "stack.json", stack.model_dump_json(indent=2), mode=0o600)


def end_leftovers(state: Path) -> int:
    """End what a killed launcher left behind, and return how many processes that were; to be called under the lock."""
    previous = read_state(state)
    return len(end_marked(previous.mark)) if previous else 0


def marked_processes(mark: str) -> list[psutil.Process]:
    """Every process that carries a stack's mark, this one apart."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def end_marked(mark: str, grace_seconds: float = 10) -> list[int]:
    """End every process that carries a stack's mark, this one apart; returns their ids."""
    marked = marked_processes(mark)
    for process in marked:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(marked, timeout=grace_seconds)
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=grace_seconds)
    return [process.pid for process in marked]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()
