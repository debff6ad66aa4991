"""The MLflow server of one home: on loopback, one worker, SQLite and a folder of artefacts below the state folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from pipelines.embedded.state import running_stack
from pipelines.errors import VlmopsError
from pipelines.settings import Settings
from pipelines.system import processes

START_SECONDS = 180

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and 600 MB for jobs that we never give it
    "PYTHONDONTWRITEBYTECODE": "",  # cached bytecode makes the next start quicker
}


class MlflowFailed(VlmopsError):
    """The MLflow server did not start."""


def command(settings: Settings, port: int) -> list[str]:
    """The argument list that starts the server."""
    return [
        settings.core_python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{settings.state / 'mlflow.db'}",
        "--artifacts-destination", (settings.state / "mlflow-artifacts").as_uri(),
    ]  # fmt: skip


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


@contextmanager
def mlflow_server(settings: Settings) -> Iterator[str]:
    """The address of a server of this home: the configured one, that of a running stack, or one started for the block.

    Raises:
        MlflowFailed: It did not start; the message ends with its log.
    """
    if (url := settings.mlflow_uri or _of_running_stack(settings.state)) is not None:
        yield url
        return
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    port = processes.free_port()
    log = settings.state / "logs" / "mlflow-alone.log"
    with processes.running(command(settings, port), log, ENVIRONMENT) as server:
        url = f"http://127.0.0.1:{port}"
        processes.wait_until(
            lambda: server.poll() is not None or answers(url),
            START_SECONDS,
            lambda: MlflowFailed(f"MLflow did not answer within {START_SECONDS} s:\n{processes.tail(log)}"),
        )
        if server.poll() is not None:
            raise MlflowFailed(f"MLflow ended with exit code {server.returncode}:\n{processes.tail(log)}")
        yield url


def _of_running_stack(state: Path) -> str | None:
    stack = running_stack(state)
    return stack.mlflow_url if stack is not None and answers(stack.mlflow_url) else None
