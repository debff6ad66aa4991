"""The production stack without containers: what docker-compose.yml starts, with the same commands and environments.

Hosts, ports and folders of the containers are replaced by those of this machine; nothing else differs. What ends by
itself or is killed is started again, as Docker does.
"""

from __future__ import annotations

from tests import airflow_home  # noqa: F401  # isort: skip  before airflow is imported

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from pipelines.embedded.airflow_api import Airflow
from pipelines.errors import Unreachable
from pipelines.operators import BY_AIRFLOW
from pipelines.settings import ROOT
from pipelines.stack.env_file import env_file
from pipelines.system.processes import free_port, stop

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VARIABLE = re.compile(r"\$\{(\w+)[^}]*\}")


def variables(text: str) -> dict[str, str]:
    """The lines of an env file."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def resolved(text: str, values: Mapping[str, str]) -> str:
    """A value of docker-compose.yml as Docker fills it in."""
    return VARIABLE.sub(lambda found: values[found[1]], text)


def service_environment(name: str, values: Mapping[str, str]) -> dict[str, str]:
    """What a container of a service would have in its environment."""
    service = COMPOSE["services"][name]
    shared = variables((ROOT / service["env_file"]).read_text()) if "env_file" in service else {}
    own = service.get("environment", {})
    return {**shared, **{key: resolved(str(value), values) for key, value in own.items()}}


def program(name: str) -> str | None:
    """A program on PATH, or where Debian keeps PostgreSQL's."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(kept[-1]) if kept else None)


class Production:
    """Everything, running. Its own folder, because PostgreSQL does not run as root and must reach it."""

    def __init__(self, home: Path, config: Path, cache: Path, faster: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vlmops-stack-"))
        self.folder.chmod(0o755)
        self.values = variables(env_file()) | {"VLMOPS_CONFIG": str(config)}
        self.faster = faster
        names = ("postgres", "redis", "api", "mlflow", "health")
        self.ports = dict(zip(names, (free_port() for _ in names), strict=True))
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self.mlflow_url = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.places = {
            "@postgres/": f"@127.0.0.1:{self.ports['postgres']}/",
            "@redis:6379": f"@127.0.0.1:{self.ports['redis']}",
            "http://airflow-api:8080": self.url,
            "http://mlflow:5000": self.mlflow_url,
            "/opt/vlmops": str(ROOT),
            "/var/lib/airflow": str(self.folder / "airflow"),
            "/var/log/airflow": str(self.folder / "airflow" / "logs"),
            "/var/lib/mlflow": str(self.folder / "mlflow"),
            "/var/lib/vlmops": str(home),
            "/var/cache/vlmops": str(cache),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start everything in the order of its dependencies."""
        self._start_postgres()
        self._keep(
            "redis", [str(ROOT / "docker" / "redis-start"), "--bind", "127.0.0.1", "--port", self._port("redis")]
        )
        self._wait(lambda: self._ready("postgres"), 30, "PostgreSQL")
        self._init_databases()
        self._keep("mlflow", self._moved(self._command("mlflow")))
        self._run("airflow-init", [str(ROOT / "docker" / "airflow-init")])
        for name in ("airflow-api", "airflow-scheduler", "airflow-dag-processor", "worker", "worker-gpu"):
            self._keep(name, self._command(name))

    def stop(self) -> None:
        """End everything, and leave nothing."""
        self._stopping.set()
        with ThreadPoolExecutor(len(self._running)) as threads:
            list(threads.map(lambda process: stop(process.pid, grace_seconds=2), self._running.values()))
        shutil.rmtree(self.folder)

    def login(self, user: str) -> Airflow:
        """Airflow as one of the users that docker/airflow-init made."""
        return Airflow(self.url, user, self.values[f"AIRFLOW_{user.upper()}_PASSWORD"])

    def ready(self, dags: set[str]) -> None:
        """Wait until Airflow has the Dags, MLflow answers and the workers are there."""
        with self.login("admin") as airflow:
            self._wait(lambda: _has(airflow, dags), 180, "Airflow to load the Dags")
        self._wait(lambda: httpx.get(f"{self.mlflow_url}/health").is_success, 120, "MLflow")

    def kill(self, name: str) -> None:
        """SIGKILL a part and all that it started, except steps: those have sessions of their own, and live on."""
        process = psutil.Process(self._running[name].pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if BY_AIRFLOW not in member.environ():
                    member.kill()

    def restart_postgres(self) -> None:
        """Stop the database at once, whoever is connected; it is started again like everything else."""
        self._running["postgres"].send_signal(signal.SIGINT)

    def log(self, name: str) -> str:
        """What a part has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a part: that of its container, on this machine."""
        own = service_environment(name, self.values)
        for place, here in self.places.items():
            own = {key: value.replace(place, here) for key, value in own.items()}
        own |= {key: value for key, value in self.faster.items() if name.startswith(("airflow", "worker"))}
        own |= {"AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__PORT": self._port("api")}
        own |= {"AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": self._port("health")}
        own |= {"AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": "127.0.0.1"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "VLMOPS"))}
        return {**kept, **own, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def _command(self, name: str) -> list[str]:
        return [resolved(part, self.values) for part in COMPOSE["services"][name]["command"]]

    def _moved(self, command: Sequence[str]) -> list[str]:
        """MLflow's command, which names where it listens."""
        port = self._port("mlflow")
        moved = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}", "--workers=2": "--workers=1"}
        hosts = f"--allowed-hosts=127.0.0.1:{port}"
        return [hosts if part.startswith("--allowed") else moved.get(part, part) for part in command]

    def _start_postgres(self) -> None:
        data, owner = self.folder / "postgres", "postgres" if os.geteuid() == 0 else None
        data.mkdir()
        (self.folder / "password").write_text(self.values["POSTGRES_PASSWORD"])
        if owner is not None:
            for path in (data, self.folder / "password"):
                shutil.chown(path, owner)
        initdb = [str(program("initdb")), "-D", str(data), "-U", "postgres", "-A", "scram-sha-256", "--no-sync"]
        made = [*initdb, "--encoding=UTF8", "--pwfile", str(self.folder / "password")]
        subprocess.run(made, check=True, capture_output=True, user=owner, cwd=data)
        command = [str(program("postgres")), "-D", str(data), "-p", self._port("postgres")]
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(data), "fsync": "off"}
        self._keep("postgres", [*command, *(f"--{key}={value}" for key, value in options.items())], owner)

    def _init_databases(self) -> None:
        client = {"PGHOST": "127.0.0.1", "PGPORT": self._port("postgres"), "POSTGRES_USER": "postgres"}
        client |= {"PGPASSWORD": self.values["POSTGRES_PASSWORD"]}
        self._run("postgres", [str(ROOT / "docker" / "postgres-init")], client)

    def _ready(self, name: str) -> bool:
        command = [str(program("pg_isready")), "-h", "127.0.0.1", "-p", self._port(name)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def _run(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        done = subprocess.run(
            command, env={**self.environment(name), **(extra or {})}, cwd=self.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL if name == "postgres" else None, start_new_session=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"

    def _keep(self, name: str, command: Sequence[str], owner: str | None = None) -> None:
        """Run a part, and start it again whenever it ends."""
        folder = self.folder / f"{name}.d"
        folder.mkdir()
        environment = {} if name == "postgres" else self.environment(name)

        def again() -> subprocess.Popen[bytes]:
            with (self.folder / f"{name}.log").open("ab") as output:
                return subprocess.Popen(
                    command, env=environment, cwd=folder, user=owner, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip

        def watch() -> None:
            while not self._stopping.is_set():
                self._running[name].wait()
                if not self._stopping.wait(0.5):
                    self._running[name] = again()

        self._running[name] = again()
        threading.Thread(target=watch, name=name, daemon=True).start()

    def _wait(self, condition: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, Unreachable):
                if condition():
                    return
            time.sleep(0.3)
        logs = "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log")
        )
        raise AssertionError(f"waited {seconds:.0f} s for {what}\n{logs}")

    def _port(self, name: str) -> str:
        return str(self.ports[name])


def _has(airflow: Airflow, dags: set[str]) -> bool:
    assert airflow.import_errors() == []
    return airflow.dags() >= dags
