"""Where things are on this machine. The only module that reads the environment (`VLMOPS_...`, and the hubs' own)."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: configs, Dags and the two environments lie below it."""


def _interpreter(environment: str) -> str:
    python = ROOT / environment / "bin" / "python"
    return str(python) if python.exists() else sys.executable


def _optional_interpreter(environment: str) -> str | None:
    python = ROOT / environment / "bin" / "python"
    return str(python) if python.exists() else None


class Settings(BaseSettings):
    """Facts of one machine; everything about a model or a run is in its config instead."""

    model_config = SettingsConfigDict(
        env_prefix="VLMOPS_",
        env_ignore_empty=True,  # a line of .env without a value sets nothing
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    home: Path = Path(".vlmops")
    """Runs, serving state and secrets."""

    cache_dir: Path | None = None
    """Base models and built-in data; `<home>/cache` when unset. Safe to delete."""

    core_python: str = Field(default_factory=lambda: _interpreter(".venv"))
    """Interpreter of the core environment (Airflow, MLflow, tools)."""

    ml_python: str = Field(default_factory=lambda: _interpreter(".venv-ml"))
    """Interpreter of the ml environment (PyTorch, vLLM, Caddy)."""

    quantize_python: str | None = Field(default_factory=lambda: _optional_interpreter(".venv-quantize"))
    """Interpreter of the environment of the calibrated schemes (llm-compressor). Unset: it was not made."""

    mlflow_uri: str | None = None
    """Address of the MLflow server, such as http://127.0.0.1:5000. Unset: the command starts one of its own."""

    mlflow_page: str | None = None
    """Where people open MLflow's pages, if that is elsewhere than `mlflow_uri`: links to reports begin with it."""

    config: Path = ROOT / "configs" / "smoke.yaml"
    """The config that the Dags use unless a run names another."""

    retrain_schedule: str | None = None
    """Cron expression of the retrain Dag. Unset: only by hand."""

    data_watch: str | None = None
    """Folder or bucket (`s3://bucket/folder`) in which new files start a retrain. Unset: none."""

    data_watch_minimum: int = Field(100, ge=1)
    """How many new files start it."""

    data_poll_seconds: float = Field(300.0, gt=0)
    """How often they are counted."""

    reviewer: str = "reviewer"
    """Who may approve a candidate: a user name (a numeric id under Airflow's FAB users)."""

    registry_poll_seconds: float = Field(15.0, gt=0)
    """How often the registry's alias is looked at."""

    front_host: str = "127.0.0.1"
    """Where the front listens; 0.0.0.0 in a container, whose ports are published on loopback."""

    front_port: int = Field(8800, ge=1, le=65535)
    """Where clients send their requests: Caddy, on loopback."""

    engine_port: int = Field(8801, ge=1, le=65535)
    """vLLM, on loopback, behind Caddy."""

    ready_port: int = Field(8802, ge=1, le=65535)
    """Where Caddy asks itself whether to hold requests."""

    keys_port: int = Field(8804, ge=1, le=65535)
    """Where Caddy asks whether a key opens, and Prometheus how often each did; on loopback."""

    @field_validator("home", "cache_dir", "config")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # Steps run in other processes; a relative path would follow their working directory.
        return value and value.resolve()

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.home / "runs"

    @property
    def state(self) -> Path:
        """What outlives a run: databases, secrets, who serves."""
        return self.home / "state"

    @property
    def serving(self) -> Path:
        """The deploy log, the deploy lock, the readiness switch, the engine's logs."""
        return self.state / "serving"

    @property
    def sealed(self) -> Path:
        """Who was judged on which test split, a file for each."""
        return self.home / "sealed"

    @property
    def cache(self) -> Path:
        """Base models and built-in data, by digest."""
        return self.cache_dir or self.home / "cache"

    @property
    def front_url(self) -> str:
        """Where clients send their requests."""
        return f"http://127.0.0.1:{self.front_port}"

    @property
    def engine_url(self) -> str:
        """Where vLLM itself listens."""
        return f"http://127.0.0.1:{self.engine_port}"


class RegistryLogin(BaseSettings):
    """Who we are to an MLflow that asks; MLflow's own variables, for what asks it without MLflow's client."""

    model_config = SettingsConfigDict(env_prefix="MLFLOW_TRACKING_", env_ignore_empty=True, frozen=True)

    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Of each request: a name with its password goes before a token, as in MLflow."""
        if self.username and self.password:
            pair = f"{self.username}:{self.password.get_secret_value()}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        return {"Authorization": f"Bearer {self.token.get_secret_value()}"} if self.token else {}


class Pods(BaseSettings):
    """How a step runs as a pod of a Kubernetes cluster; `VLMOPS_POD_...`."""

    model_config = SettingsConfigDict(
        env_prefix="VLMOPS_POD_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    core_image: str | None = None
    """Image `core` of `docker/Dockerfile` in a registry that the cluster can read. Unset: no pods."""

    ml_image: str | None = None
    """Image `ml`, the same with PyTorch and vLLM."""

    namespace: str = "default"
    """Where pods are made."""

    home_claim: str = "vlmops-home"
    """Volume claim (ReadWriteMany where several nodes work) of VLMOPS_HOME; it is mounted at that very path."""

    cache_claim: str = "vlmops-cache"
    """The same of the cache."""

    data_claim: str | None = None
    """Volume claim of your data, read-only at `/data`. Unset: none."""

    secret: str = "vlmops"  # noqa: S105  the name of an object
    """Secret whose keys are the variables that hold tokens, such as HF_TOKEN; a key that it lacks stays unset."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that steps with a card run on, as JSON: `{"nvidia.com/gpu.product": "NVIDIA-L40S"}`."""

    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster's device plugin calls a card."""

    cpus: float = Field(4.0, gt=0)
    """That a step asks for."""

    memory_gib: float = Field(16.0, gt=0)
    """Host memory of a step; where the plan says that it needs more, that."""

    shared_memory_gib: float = Field(8.0, gt=0)
    """Of `/dev/shm`, which PyTorch's and vLLM's processes share; counted to the memory."""

    deadline_hours: float = Field(24.0, gt=0)
    """After which a pod is ended."""


class Hubs(BaseSettings):
    """The variables of the model hubs' own tools: what serves those serves us. S3 is configured as for boto3."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, use_attribute_docstrings=True)

    hf_endpoint: str = Field("https://huggingface.co", pattern=r"^https?://")
    """The Hugging Face hub or a mirror of it."""

    hf_token: SecretStr | None = None
    """For private and gated models."""

    modelscope_endpoint: str = Field("https://www.modelscope.cn", pattern=r"^https?://")
    """ModelScope or a mirror of it."""

    modelscope_api_token: SecretStr | None = None
    """For private models."""


class Team(BaseSettings):
    """Which one this is of the processes that run a step together; `accelerate launch` says so."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    rank: int = Field(0, ge=0)
    """The first one records what the step did."""

    world_size: int = Field(1, ge=1)
    """How many there are."""


def secret(variable: str) -> str:
    """The value of a variable that a config names; configs hold no secrets themselves.

    Raises:
        BadInput: It is not set, or empty.
    """
    if not (value := os.environ.get(variable, "").strip()):
        raise BadInput(f"{variable} is not set; the config takes a secret from that environment variable")
    return value
