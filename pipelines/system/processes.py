"""Child processes that end when they should: each in a process group of its own, started with an argument list."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from pipelines.errors import MachineUnfit, VlmopsError

SECRET = re.compile(
    r"""(?ix) ( TOKENS? | KEY | SECRETS? | PASSWORD | PASSWD | PASSPHRASE | CREDENTIALS? | _PWD
    | (^|_) ( AUTH | PASS | PAT | CONN | DSN | WEBHOOK | BROKER_URL | RESULT_BACKEND | DATABASE_UR[IL] ) ) (_|$)"""
)
"""What environment variables that hold a secret have in their names."""

CREDENTIALS = re.compile(r"://[^/\s@]+@")
"""An address, such as a proxy's, with a name, a password or a token in it."""


def free_port() -> int:
    """A port on loopback that nothing listens on now.

    Below the range that the kernel gives to outgoing connections, one of which could else take the port of an engine
    while that is being replaced.
    """
    while True:
        port = random.randrange(20_000, 32_768)
        try:
            require_free_port(port, "a free one")
        except MachineUnfit:
            continue
        return port


def port_is_free(port: int) -> bool:
    """Whether nothing listens on a port of loopback."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free_port(port: int, purpose: str) -> None:
    """Raise MachineUnfit if something already listens on a port."""
    if not port_is_free(port):
        raise MachineUnfit(f"port {port} ({purpose}) is taken; stop what listens there or choose another")


def start(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    *,
    outlives_us: bool = True,
    secrets: bool = True,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command as the leader of its own process group, its output appended to `log`.

    Args:
        env: Added to this process's environment.
        outlives_us: False: it gets SIGTERM when this process ends in any way, also by SIGKILL.
        secrets: Whether it gets those of this process's environment.
        folder: That it works in; this process's unless told.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited(secrets=secrets), **(env or {})},
            cwd=folder,
            start_new_session=True,
            preexec_fn=None if outlives_us else end_with_parent,  # noqa: PLW1509  one system call, no lock
        )


def inherited(*, secrets: bool) -> dict[str, str]:
    """This process's environment; without secrets, whatever is named as one or is an address with credentials is not
    there.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if secrets or not (SECRET.search(name) or CREDENTIALS.search(value))
    }


def stop(pid: int, grace_seconds: float = 20) -> None:
    """End a process group that `start` made: SIGTERM to its leader, after the grace SIGKILL to all of it."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        leader.terminate()
    except psutil.NoSuchProcess:
        family = []
    for process in (stubborn := _alive_after(family, grace_seconds)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _alive_after(stubborn, grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # whoever was started by a member that was gone before we looked


def end_group(pid: int, grace_seconds: float) -> None:
    """End the process group that a process belongs to: SIGTERM to its leader, after the grace SIGKILL to the group.

    What its members started in groups of their own is left to them: an engine in service outlives who started it.
    """
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        group = os.getpgid(pid)
        os.kill(group, signal.SIGTERM)
        _alive_after([psutil.Process(group)], grace_seconds)
        os.killpg(group, signal.SIGKILL)


def _alive_after(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Who still runs when the time is up; an ended process that nobody has reaped does not."""
    deadline = time.monotonic() + seconds
    while (alive := [process for process in family if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Get SIGTERM when the process that started this one ends in any way, also by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_cleanly_on_sigterm() -> None:
    """Turn SIGTERM into an exception, so that whatever a block started is stopped on the way out."""

    def end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  what a handler is given
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def running(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A started command, stopped on leaving the block."""
    process = start(command, log, env, outlives_us=False, folder=folder)
    try:
        yield process
    finally:
        stop(process.pid)
        process.wait()


def wait_until(
    condition: Callable[[], bool], seconds: float, failure: Callable[[], VlmopsError], interval: float = 0.2
) -> float:
    """Wait until a condition holds and return the seconds it took; raise what `failure` makes at the deadline."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise failure()
        time.sleep(interval)
    return time.monotonic() - began


def carries(pid: int, variable: str, value: str) -> bool:
    """Whether a process was started with a variable of this value; False if it is gone or not ours to see."""
    try:
        return psutil.Process(pid).environ().get(variable) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def output(pid: int) -> Path | None:
    """The file that a process writes to, by its name of now or its last one; None of who is gone or another user's."""
    try:
        return Path(str(Path(f"/proc/{pid}/fd/1").readlink()).removesuffix(" (deleted)"))
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return None


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(no log)"
