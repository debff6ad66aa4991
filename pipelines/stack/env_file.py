"""The `.env` that docker-compose.yml reads: a secret for each who needs one, and what differs from place to place."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from pipelines.errors import BadInput
from pipelines.system.durable import write_text

SECRETS = (
    "POSTGRES_PASSWORD",
    "AIRFLOW_DB_PASSWORD",
    "MLFLOW_DB_PASSWORD",
    "REDIS_PASSWORD",
    "AIRFLOW_API_SECRET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_REVIEWER_PASSWORD",
    "GRAFANA_ADMIN_PASSWORD",
)
"""Generated, each of 256 bits."""

PLACE = """\
# What `docker compose up -d` starts. gpu and monitoring need an NVIDIA card, and NVIDIA's container toolkit.
COMPOSE_PROFILES=core,gpu,monitoring

# Tag of the two images of ours, and what is in the ml image: cuda or cpu.
VLMOPS_VERSION=0.1.0
VLMOPS_ML=cuda

# The config of the Dags, below configs/; your data sets, seen as /data; a cron expression, or nothing.
VLMOPS_CONFIG=configs/qwen3_vl_30b.yaml
VLMOPS_DATA=./data
VLMOPS_RETRAIN_SCHEDULE=
# A folder (/data/...) or bucket in which so many new files start a retrain; nothing: none.
VLMOPS_DATA_WATCH=
VLMOPS_DATA_WATCH_MINIMUM=100

# Where pages and the model are. Anything but 127.0.0.1 is open to the network, and MLflow (where an alias decides what
# serves), Prometheus and Alertmanager ask nobody who they are: put a proxy with HTTPS and a login before them instead.
VLMOPS_BIND=127.0.0.1
AIRFLOW_PORT=8080
MLFLOW_PORT=5000
FRONT_PORT=8800
GRAFANA_PORT=3000
PROMETHEUS_PORT=9090
ALERTMANAGER_PORT=9093

# Where MLflow keeps files: the volume, or s3://bucket/folder.
MLFLOW_ARTIFACTS=/var/lib/mlflow

# Limits of the two workers. An engine lives in the container of who started it.
WORKER_CPUS=4
WORKER_MEMORY=16g
GPU_CPUS=16
GPU_MEMORY=96g

# Of the receivers in configs/monitoring/alertmanager.yml; fill in those that you keep.
ALERT_SMTP_PASSWORD=
ALERT_SLACK_WEBHOOK=
ALERT_WEBHOOK_TOKEN=
"""


def write_env_file(path: Path, *, force: bool) -> None:
    """Write the file, readable by its owner alone.

    Raises:
        BadInput: It is there, and is not to be replaced.
    """
    if path.exists() and not force:
        raise BadInput(
            f"{path} is there; databases that were made with it know no other passwords. "
            "--force writes a new one, for volumes that are new too"
        )
    write_text(path, env_file(), mode=0o600)


def env_file() -> str:
    """The text of a new file, with secrets that nobody has seen."""
    generated = "".join(f"{name}={secrets.token_urlsafe(32)}\n" for name in SECRETS)
    fernet = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return (
        f"# Written by `vlmops stack init` for docker-compose.yml. Keep it: it opens the databases.\n\n{PLACE}"
        f"\n# Secrets.\n{generated}AIRFLOW_FERNET_KEY={fernet}\n"
    )
