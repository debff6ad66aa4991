"""The embedded stack: Airflow, MLflow and the serving front on loopback, from one state folder, until told to stop.

    with Stack(settings) as stack:        # ready when the block begins, nothing left when it ends
        stack.login(ADMIN).trigger("retrain", {})

`vlmops stack` runs it in the foreground. Secrets lie in files of mode 600 in `state/secrets`, logs in `state/logs`.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console

from pipelines.config_file import load_config
from pipelines.embedded import components, mlflow_server
from pipelines.embedded import state as stack_state
from pipelines.embedded.airflow_api import Airflow
from pipelines.embedded.components import ADMIN, Ports
from pipelines.embedded.parts import PartFailed, Parts
from pipelines.embedded.state import StackState
from pipelines.errors import DONE, Unreachable, VlmopsError
from pipelines.launch import BRIEF, environment
from pipelines.registry import Registry
from pipelines.settings import ROOT, Settings
from pipelines.system.processes import free_port, require_free_port

log = logging.getLogger(__name__)

START_SECONDS = 300
STOP_SECONDS = 6
"""Grace of a part before it is killed; Airflow's scheduler would wait for its running tasks without end."""

HEALTHY = dict.fromkeys(("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy")


class Stack:
    """The running stack. For the main thread: within the block SIGTERM is Ctrl-C, and neither interrupts the stopping.

    Args:
        settings: `home` decides the folder. Without `mlflow_uri` the stack has an MLflow of its own.

    Raises:
        MachineUnfit: Another stack holds this folder, or a port is taken.
        PartFailed: A part did not start, or died.
    """

    def __init__(self, settings: Settings) -> None:
        self._own_mlflow = settings.mlflow_uri is None
        self._ports = Ports(airflow=free_port(), mlflow=free_port())
        self.airflow_url = f"http://127.0.0.1:{self._ports.airflow}"
        self.mlflow_url = settings.mlflow_uri or f"http://127.0.0.1:{self._ports.mlflow}"
        self.settings = settings.model_copy(update={"mlflow_uri": self.mlflow_url})
        """The given ones with the address of MLflow: what every step sees."""
        self.ready_seconds = 0.0
        self._mark = secrets.token_hex(16)
        self._block = ExitStack()

    def __enter__(self) -> Self:
        """Start everything, and return when all of it answers."""
        began = time.monotonic()
        with ExitStack() as block:
            block.enter_context(_sigterm_is_interrupt())
            block.enter_context(stack_state.sole_stack(self.settings.state))
            self._clear_the_ground()
            self._parts = Parts(self.settings.state / "logs", self._environment())
            block.callback(self._stop)
            self._start()
            self._block = block.pop_all()
        self.ready_seconds = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop everything."""
        self._block.close()

    def login(self, user: str) -> Airflow:
        """Airflow as one of the embedded users."""
        return Airflow(self.airflow_url, user, components.password(self.settings, user))

    def check(self) -> None:
        """Raise PartFailed if a part has died."""
        self._parts.check()

    def _clear_the_ground(self) -> None:
        """End what a killed launcher left behind, see that the ports are free, and write down who we are."""
        if ended := stack_state.end_leftovers(self.settings.state):
            log.warning("ended %d processes of a stack that was killed", ended)
        require_free_port(self.settings.front_port, "the serving front; VLMOPS_FRONT_PORT")
        require_free_port(self.settings.engine_port, "the vLLM engine; VLMOPS_ENGINE_PORT")
        require_free_port(self.settings.ready_port, "the front's readiness; VLMOPS_READY_PORT")
        require_free_port(self.settings.keys_port, "the front's keys service; VLMOPS_KEYS_PORT")
        if (self.settings.serving / "serving.json").is_file():
            self._stop_service()  # its engine is gone; `serve_again` decides what serves, and no supervisor before it
        state = StackState(
            pid=os.getpid(),
            mark=self._mark,
            airflow_url=self.airflow_url,
            mlflow_url=self.mlflow_url,
            front_url=self.settings.front_url,
        )
        stack_state.write_state(self.settings.state, state)

    def _environment(self) -> dict[str, str]:
        components.write_passwords(self.settings)
        marks = {stack_state.MARK: self._mark, **stack_state.MARKING}
        return {**components.stack_environment(self.settings, self._ports), **marks}

    def _start(self) -> None:
        independent = components.independent_components(self.settings, self._ports, own_mlflow=self._own_mlflow)
        for name, command in independent.items():
            self._parts.start(name, command)
        self._parts.run("migrate", components.airflow_command(self.settings, "db", "migrate"), START_SECONDS)
        for name, command in components.airflow_components(self.settings).items():
            self._parts.start(name, command)
        with self.login(ADMIN) as airflow:
            self._parts.wait(lambda: _healthy(airflow), START_SECONDS, "Airflow to be healthy")
            airflow.ensure_pool("gpu", slots=1, description="One card: one step at a time.")
            self._parts.wait(lambda: dags_loaded(airflow), START_SECONDS, "the Dags to be loaded")
        self._parts.wait(lambda: mlflow_server.answers(self.mlflow_url), START_SECONDS, "MLflow to answer")
        self._parts.wait(lambda: _listens(self.settings.front_port), START_SECONDS, "the serving front to listen")

    def _stop(self) -> None:
        with _uninterrupted():
            stopped = self._stop_service()  # first: requests under way end through the front
            self._parts.stop(STOP_SECONDS)
            if not stopped:  # a promotion was under way, which has ended now
                self._stop_service()
            stack_state.end_marked(self._mark)

    def _stop_service(self) -> bool:
        """End the engine, which outlives the step that started it, and say whether that was possible."""
        command = [self.settings.ml_python, "-m", "serving.service", "stop"]
        env = {**BRIEF, **environment(self.settings)}
        (logs := self.settings.state / "logs").mkdir(parents=True, exist_ok=True)
        with (logs / "service-stop.log").open("a") as output:
            ended = subprocess.run(command, env=env, stdout=output, stderr=subprocess.STDOUT, check=False)
        return ended.returncode == DONE


def run_stack(settings: Settings) -> int:
    """Run the stack in the foreground until Ctrl-C or SIGTERM, and return the exit code."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        with Stack(settings) as stack:
            console.print(f"ready in {stack.ready_seconds:.0f} s; Ctrl-C stops everything", *addresses(stack), sep="\n")
            console.print(served_again(stack))
            stay(stack)
    except KeyboardInterrupt:
        console.print("interrupted while starting")
    return DONE


def served_again(stack: Stack) -> str:
    """A sentence on what serves now. That it could not be asked for is no reason to end everything else."""
    try:
        if serve_again(stack):
            return "the approved version is put back into service: see the Dag redeploy"
        return "no version is approved yet"
    except VlmopsError as error:
        return f"the approved version is not put back into service: {error}; trigger the Dag redeploy"


def serve_again(stack: Stack) -> bool:
    """Put back into service what an earlier stack of this home served; its engine ended with it, its alias stayed."""
    model = load_config(stack.settings.config).registry.model
    if "approved" not in Registry(stack.settings, model).aliases():
        return False
    with stack.login(ADMIN) as airflow:
        airflow.trigger("redeploy", {})
    return True


def stay(stack: Stack) -> None:
    """Return at Ctrl-C or SIGTERM; raise PartFailed if a part dies before."""
    try:
        while True:
            stack.check()
            time.sleep(1)
    except KeyboardInterrupt:
        return


def addresses(stack: Stack) -> list[str]:
    """A line for each page and port."""
    users = " or ".join(components.users(stack.settings))
    return [
        f"Airflow  {stack.airflow_url}  log in as {users}, passwords in {components.passwords_file(stack.settings)}",
        f"MLflow   {stack.mlflow_url}",
        f"Model    {stack.settings.front_url}/v1",
    ]


def _healthy(airflow: Airflow) -> bool:
    try:
        return HEALTHY.items() <= airflow.health().items()
    except Unreachable:
        return False


def dags_loaded(airflow: Airflow) -> bool:
    """Whether every Dag file is loaded: each is named for its Dag."""
    if errors := airflow.import_errors():
        raise PartFailed(f"{len(errors)} Dag files cannot be loaded, the first because:\n{errors[0]}")
    return airflow.dags() >= {path.stem for path in (ROOT / "dags").glob("*.py")}


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _sigterm_is_interrupt() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave half of the stack running; the grace of each part bounds the wait."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
