"""docker-compose.yml: valid, without a default password, closed to the network, and of commands that exist."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from pipelines.cli import parser
from pipelines.settings import ROOT, Settings
from pipelines.stack.env_file import SECRETS, env_file
from pipelines.system.processes import SECRET
from tests.stack.production import COMPOSE, VARIABLE, resolved, service_environment, variables

TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VALUES = variables(env_file())
FROM_US = {name for name, service in SERVICES.items() if "build" in service}


def command(name: str) -> list[str]:
    return [resolved(part, VALUES) for part in SERVICES[name]["command"]]


def test_it_follows_the_specification() -> None:
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(COMPOSE)] == []


def test_each_profile_has_its_parts() -> None:
    by_profile = {profile: {n for n, s in SERVICES.items() if profile in s["profiles"]} for profile in
                  ("core", "gpu", "monitoring")}  # fmt: skip
    assert by_profile["core"] >= {"postgres", "redis", "mlflow", "airflow-init", "airflow-api", "airflow-scheduler",
                                  "airflow-dag-processor", "airflow-triggerer", "worker"}  # fmt: skip
    assert by_profile["gpu"] == {"front", "worker-gpu", "watch"}
    assert by_profile["monitoring"] >= {"front", "monitor", "gpu-exporter", "prometheus", "alertmanager", "grafana"}


def test_every_variable_must_be_set_and_stack_init_sets_it() -> None:
    used = {found.group(0): found.group(1) for found in VARIABLE.finditer(TEXT)}
    assert len(used) > 20
    assert [text for text in used if "?" not in text] == []  # no default of any kind
    assert set(used.values()) | set(COMPOSE["secrets"]) >= set(SECRETS)
    assert {name for name in used.values() if name not in VALUES} == set()
    assert {secret["environment"] for secret in COMPOSE["secrets"].values()} <= set(VALUES)


def test_what_stack_init_sets_is_used() -> None:
    used = {found.group(1) for found in VARIABLE.finditer(TEXT)}
    used |= {secret["environment"] for secret in COMPOSE["secrets"].values()} | {"COMPOSE_PROFILES"}  # Docker's own
    assert set(VALUES) == used


def test_no_password_stands_in_the_file() -> None:
    secret = [name for name in VALUES if name in SECRETS or name.endswith(("_KEY", "_PASSWORD", "_SECRET"))]
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key or key.endswith(
                ("_SECRET", "_SECRET_KEY", "FERNET_KEY", "CONN", "BROKER_URL", "RESULT_BACKEND")
            ):
                assert {found.group(1) for found in VARIABLE.finditer(value)} & set(secret), (name, key)


def test_no_command_holds_a_secret() -> None:
    told = [part for service in SERVICES.values() for part in service.get("command", [])]
    assert {found.group(1) for part in told for found in VARIABLE.finditer(part)} & set(SECRETS) == set()


def test_no_engine_is_told_a_secret_of_what_runs_beside_it() -> None:
    told = service_environment("airflow-api", VALUES) | service_environment("worker-gpu", VALUES)
    holding = {key for key, value in told.items() if any(VALUES[name] in value for name in SECRETS)}
    assert len(holding) >= 5
    assert [key for key in holding if not SECRET.search(key)] == []


def test_workers_know_neither_the_database_nor_what_signs_tokens() -> None:
    for name in ("worker", "worker-gpu"):
        assert not [
            key
            for key in service_environment(name, VALUES)
            if key.endswith(("CONN", "FERNET_KEY", "JWT_SECRET", "SECRET_KEY"))
        ]


def test_every_port_is_published_on_loopback() -> None:
    ports = [resolved(port, VALUES) for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) >= 6
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert [name for name, service in SERVICES.items() if service.get("network_mode") == "host"] == []


def test_what_is_written_lies_in_named_volumes() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    writable = {mount.partition(":")[0] for mount in mounts if not mount.endswith(":ro")}
    assert writable == set(COMPOSE["volumes"])
    bound = {resolved(mount, VALUES).partition(":")[0] for mount in mounts if mount.endswith(":ro")}
    assert [path for path in bound - {VALUES["VLMOPS_DATA"]} if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_limited_watched_and_its_log_is_bounded(name: str) -> None:
    service = SERVICES[name]
    tag = resolved(service["image"], VALUES).rpartition(":")[2]
    assert any(character.isdigit() for character in tag)
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}
    assert ("healthcheck" in service) or service["restart"] == "no"


def test_who_sees_engines_shares_network_and_processes_with_the_front() -> None:
    for name in ("worker-gpu", "watch", "monitor"):
        assert (SERVICES[name]["network_mode"], SERVICES[name]["pid"]) == ("service:front", "service:front")
    for name, service in SERVICES.items():  # as an engine that a promotion started has nowhere else to live
        if service.get("network_mode") == "service:front":
            assert "ports" not in service, name


def test_each_queue_of_the_dags_has_a_worker() -> None:
    queues = {part[part.index("--queues") + 1] for part in map(command, ("worker", "worker-gpu"))}
    assert queues == {"default", "gpu"}
    assert "airflow pools set gpu 1 " in (ROOT / "docker" / "airflow-init").read_text()


AIRFLOW = sorted(name for name in FROM_US if SERVICES[name].get("command", [""])[0] == "airflow")


def test_airflow_takes_its_commands() -> None:
    from airflow.cli import cli_parser

    assert len(AIRFLOW) == 6
    for name in AIRFLOW:
        assert cli_parser.get_parser().parse_args(command(name)[1:]).func


def test_mlflow_takes_its_command() -> None:
    from mlflow.cli import cli

    _, server, *options = command("mlflow")
    context = cli.commands[server].make_context("server", list(options))
    assert (context.params["port"], context.params["workers"]) == (5000, "2")


def test_mlflow_answers_to_every_name_it_is_called_by() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    allowed = (
        next(part for part in command("mlflow") if part.startswith("--allowed-hosts=")).partition("=")[2].split(",")
    )
    told = service_environment("worker", VALUES)
    names = [told[name].partition("//")[2] for name in ("VLMOPS_MLFLOW_URI", "VLMOPS_MLFLOW_PAGE")]
    assert names == ["mlflow:5000", "127.0.0.1:5000"]
    assert [name for name in (*names, "localhost:5000") if not is_allowed_host_header(allowed, name)] == []
    assert not is_allowed_host_header(allowed, "elsewhere.example:5000")


@pytest.mark.parametrize("name", ["watch", "monitor"])
def test_vlmops_takes_its_commands(name: str) -> None:
    assert parser().parse_args(command(name)[1:]).command


def test_our_modules_and_scripts_are_there() -> None:
    assert command("front")[1:] == ["-m", "serving.front"]
    for path in ("docker/airflow-init", "docker/redis-start", "docker/postgres-init"):
        assert os.access(ROOT / path, os.X_OK), path


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("VLMOPS_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{name} is not installed, and VLMOPS_REQUIRE_SERVICES=1 wants it")
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("name", ["prometheus", "alertmanager"])
def test_prometheus_and_alertmanager_know_every_option(name: str) -> None:
    program = tool({"alertmanager": "prometheus-alertmanager"}.get(name, name))
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    known = help_text.stdout + help_text.stderr
    options = [part.partition("=")[0] for part in SERVICES[name]["command"]]
    assert [option for option in options if option not in known] == []


def test_what_the_images_copy_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") for part in line.split()[2:-1]]
    assert {"pipelines", "dags", "docker", "requirements/core.txt"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path.partition('/')[0]}" in ignored, path
    assert {f"requirements/ml-{ml}.txt" for ml in ("cpu", "cuda")} <= {
        str(p.relative_to(ROOT)) for p in (ROOT / "requirements").iterdir()
    }
    makefile = (ROOT / "Makefile").read_text()
    assert next(line for line in lines if "uv==" in line).split("uv==")[1].split()[0] in makefile


def test_the_front_listens_where_its_container_can_be_reached(tmp_path: Path, smoke: Any) -> None:
    from serving.caddyfile import render_caddyfile

    told = service_environment("front", VALUES)["VLMOPS_FRONT_HOST"]
    rendered = render_caddyfile(Settings(home=tmp_path, front_host=told), smoke.serving, tmp_path, "X-Key")
    assert "http://:8800 {\n\tbind 0.0.0.0\n" in rendered
    assert rendered.count("bind 127.0.0.1") == 1  # readiness stays inside
    assert "bind 0.0.0.0" not in render_caddyfile(Settings(home=tmp_path), smoke.serving, tmp_path, "X-Key")
