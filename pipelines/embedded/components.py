"""The parts of the embedded stack: their commands, and the environment that keeps them on loopback, in one folder."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.embedded import mlflow_server
from pipelines.launch import BRIEF, environment
from pipelines.settings import ROOT, Settings
from pipelines.system.credentials import credential
from pipelines.system.durable import write_text

ADMIN = "admin"
"""The user who sees and may do everything in the embedded Airflow."""


@dataclass(frozen=True)
class Ports:
    """Where the parts that have no port of their own in the settings listen."""

    airflow: int
    mlflow: int


def airflow_command(settings: Settings, *arguments: str) -> list[str]:
    """An Airflow command."""
    return [settings.core_python, "-m", "airflow", *arguments]


def airflow_components(settings: Settings) -> dict[str, list[str]]:
    """Airflow's parts. Not `airflow standalone`: that opens two log servers on all interfaces, without a choice."""
    return {
        "api-server": airflow_command(settings, "api-server", "--workers", "1"),
        "scheduler": airflow_command(settings, "scheduler", "--skip-serve-logs"),
        "dag-processor": airflow_command(settings, "dag-processor"),
        "triggerer": airflow_command(settings, "triggerer", "--skip-serve-logs"),
    }


def independent_components(settings: Settings, ports: Ports, *, own_mlflow: bool) -> dict[str, list[str]]:
    """The parts that need nothing of Airflow."""
    mlflow = {"mlflow": mlflow_server.command(settings, ports.mlflow)} if own_mlflow else {}
    brief = [f"{name}={value}" for name, value in BRIEF.items()]
    return {
        "front": [settings.ml_python, "-m", "serving.front"],
        **mlflow,
        "watch": ["env", *brief, settings.ml_python, "-m", "serving.watch"],
    }


def stack_environment(settings: Settings, ports: Ports) -> dict[str, str]:
    """The environment of every part and so of every step; makes the secrets on first use."""
    url = f"http://127.0.0.1:{ports.airflow}"
    home = settings.state / "airflow"
    airflow = {
        "CORE__DAGS_FOLDER": ROOT / "dags",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,  # a paused consumer queues no Assets
        "CORE__PARALLELISM": 4,  # two workers cost up to 2 s a task, thirty-two 300 MB
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in users(settings).items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords_file(settings),
        "CORE__FERNET_KEY": _fernet_key(credential(settings.state, "airflow-fernet")),
        "API__HOST": "127.0.0.1",
        "API__PORT": ports.airflow,
        "API__BASE_URL": url,
        "API__SECRET_KEY": credential(settings.state, "airflow-api"),
        "API_AUTH__JWT_SECRET": credential(settings.state, "airflow-jwt"),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 30,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.1,
        "SCHEDULER__ENABLE_HEALTH_CHECK": False,  # it would listen on all interfaces
    }
    return {
        **environment(settings),
        **mlflow_server.ENVIRONMENT,
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{key}": str(value) for key, value in airflow.items()},
    }


def users(settings: Settings) -> dict[str, str]:
    """Users of the embedded Airflow and their roles."""
    return {settings.reviewer: "op", ADMIN: "admin"}


def passwords_file(settings: Settings) -> Path:
    """Where Airflow reads its users' passwords; mode 600."""
    return settings.state / "secrets" / "airflow-passwords.json"


def password(settings: Settings, user: str) -> str:
    """A user's password, made on first use."""
    return credential(settings.state, f"airflow-user-{user}")


def write_passwords(settings: Settings) -> None:
    """Write the file before Airflow starts: what it has to invent it prints into its log."""
    passwords = {user: password(settings, user) for user in users(settings)}
    write_text(passwords_file(settings), json.dumps(passwords), mode=0o600)


def _fernet_key(secret: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()).decode()
