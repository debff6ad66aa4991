"""docker-compose.yml: valid, without a default password, closed to the network, and of commands that exist."""

from __future__ import annotations

import importlib.resources
import json
import os
import pkgutil
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from pipelines.cli import parser
from pipelines.config_file import load_config
from pipelines.settings import ROOT, Settings
from pipelines.stack.env_file import SECRETS, env_file
from pipelines.system.processes import SECRET
from pipelines.system.programs import beside
from serving.caddyfile import render_caddyfile
from serving.engine import VLLM, Launch
from tests.services import require
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
    assert by_profile["gpu"] == {"serving", "front", "worker-gpu", "watch"}
    assert by_profile["monitoring"] >= {
        "serving",
        "front",
        "monitor",
        "gpu-exporter",
        "prometheus",
        "alertmanager",
        "grafana",
    }


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
                ("_SECRET", "_SECRET_KEY", "FERNET_KEY", "CONN", "BROKER_URL", "RESULT_BACKEND", "DATABASE_URL")
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


def test_what_serves_shares_network_and_processes() -> None:
    for name in ("front", "worker-gpu", "watch", "monitor"):
        assert (SERVICES[name]["network_mode"], SERVICES[name]["pid"]) == ("service:serving", "service:serving")
    for name, service in SERVICES.items():  # as an engine that a promotion started has nowhere else to live
        if service.get("network_mode") == "service:serving":
            assert {"ports", "hostname"}.isdisjoint(service), name
            assert service["depends_on"]["serving"] == {"condition": "service_started", "restart": True}


def test_what_holds_them_does_nothing_that_could_end_it() -> None:
    """With it would end every engine, and Prometheus be deaf in a network that nobody else is in."""
    holder = SERVICES["serving"]
    assert command("serving") == ["sleep", "infinity"]
    assert {"environment", "volumes", "depends_on", "network_mode", "pid"}.isdisjoint(holder)
    assert holder["ports"]


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


def test_the_database_is_not_healthy_while_it_is_being_made() -> None:
    """Its image runs docker/postgres-init in a server that listens on a socket alone, and starts the real one after."""
    _, *check = SERVICES["postgres"]["healthcheck"]["test"]
    assert check[0] == "pg_isready"
    assert check[1:3] == ["--host", "127.0.0.1"]


def test_health_checks_ask_what_airflow_and_celery_answer() -> None:
    from airflow.cli import cli_parser
    from celery.bin.celery import celery

    asked = {name: SERVICES[name]["healthcheck"]["test"] for name in AIRFLOW if "healthcheck" in SERVICES[name]}
    jobs = [shlex.split(told[1].replace("$$", "$")) for told in asked.values() if told[1].startswith("airflow ")]
    pings = {name: told[2:] for name, told in asked.items() if told[1] == "celery"}
    assert (len(jobs), set(pings)) == (2, {"worker", "worker-gpu"})
    for arguments in jobs:
        assert cli_parser.get_parser().parse_args(arguments[1:]).func
    for name, arguments in pings.items():
        (flag, app), inspect = arguments[:2], arguments[3:]
        assert flag == "--app"
        assert pkgutil.resolve_name(app).control.inspect
        context = celery.commands["inspect"].make_context("inspect", list(inspect), resilient_parsing=True)
        assert context.params["destination"] == [command(name)[command(name).index("--celery-hostname") + 1]]


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


@pytest.mark.parametrize("name", ["watch", "monitor", "backup"])
def test_vlmops_takes_its_commands(name: str) -> None:
    assert parser().parse_args(command(name)[1:]).command


def test_the_timer_backs_up_what_the_stack_has(tmp_path: Path) -> None:
    args, told = parser().parse_args(command("backup")[1:]), service_environment("backup", VALUES)
    rules = load_config(ROOT / VALUES["VLMOPS_CONFIG"], tuple(args.overrides))
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["backup"]["volumes"])
    assert (mounts["home"], mounts["backups"]) == (told["VLMOPS_HOME"], str(args.to))
    assert rules.retention.mlflow_artifacts == Path(mounts["mlflow-artifacts"])
    assert rules.retention.mlflow_database_from is not None
    address, its = told[rules.retention.mlflow_database_from], service_environment("mlflow", VALUES)
    assert address == its["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", "")
    assert args.every < rules.monitoring.backup_hours


def test_folders_of_volumes_are_the_user_s_in_our_images(tmp_path: Path) -> None:
    """Docker makes one that is missing, for root alone."""
    lines = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    made = [part for line in lines for part in line.split("&&") if "install --directory --owner vlmops" in part]
    told = subprocess.run(["bash", "-c", f"echo {' '.join(made)}"], capture_output=True, text=True, check=True).stdout
    mounts = [mount.split(":") for name in FROM_US for mount in SERVICES[name].get("volumes", [])]
    wanted = {mount[1] for mount in mounts if mount[0] in COMPOSE["volumes"]}
    assert len(wanted) >= 5
    assert wanted <= set(told.split())


def test_a_backup_that_is_old_or_missing_shows_as_ill(tmp_path: Path) -> None:
    _, check = SERVICES["backup"]["healthcheck"]["test"]
    noted = tmp_path / "backup.json"
    here = check.replace("/var/lib/vlmops/state/backup.json", str(noted))

    def healthy() -> bool:
        return subprocess.run(["sh", "-c", here], capture_output=True, check=False).returncode == 0

    assert not healthy()
    noted.touch()
    assert healthy()
    os.utime(noted, (time.time() - 27 * 3600,) * 2)
    assert not healthy()


def test_our_modules_and_scripts_are_there() -> None:
    assert command("front")[1:] == ["-m", "serving.front"]
    for path in ("docker/airflow-init", "docker/redis-start", "docker/postgres-init"):
        assert os.access(ROOT / path, os.X_OK), path


STARTED = {"postgres-init": "psql", "redis-start": "redis-server", "airflow-init": "airflow"}
"""What a script of docker/ starts."""


def ran(script: str, folder: Path) -> tuple[int, str, str, int]:
    """The process id of a script of docker/, and arguments, input and process id of what it started last."""
    double = folder / STARTED[script]
    double.write_text(f'#!/bin/sh\necho "$*" >> {folder}/arguments\ncat >> {folder}/input\necho $$ > {folder}/pid\n')
    double.chmod(0o755)
    told = {**VALUES, "POSTGRES_USER": "postgres", "PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.Popen([ROOT / "docker" / script], env=told, stdin=subprocess.DEVNULL)
    assert process.wait(20) == 0
    arguments, given, pid = ((folder / name).read_text() for name in ("arguments", "input", "pid"))
    return process.pid, arguments, given, int(pid)


@pytest.mark.parametrize(("script", "secrets"), [("postgres-init", 0), ("redis-start", 1), ("airflow-init", 2)])
def test_no_script_puts_a_secret_where_every_process_can_read_it(script: str, secrets: int, tmp_path: Path) -> None:
    _, arguments, given, _ = ran(script, tmp_path)
    assert arguments.strip()
    assert [name for name in SECRETS if VALUES[name] in arguments] == []
    assert len([name for name in SECRETS if VALUES[name] in given]) == secrets


def test_psql_reads_the_passwords_of_the_environment_by_itself(tmp_path: Path) -> None:
    _, _, given, _ = ran("postgres-init", tmp_path)
    read = dict(line.split()[1:] for line in given.splitlines() if line.startswith("\\getenv "))
    assert read == {"airflow": "AIRFLOW_DB_PASSWORD", "mlflow": "MLFLOW_DB_PASSWORD"}
    assert set(read.values()) <= set(SERVICES["postgres"]["environment"])


def test_it_is_redis_that_is_told_to_stop(tmp_path: Path) -> None:
    """A shell before it would end at once, and Redis be killed with what it has not written."""
    script, _, _, redis = ran("redis-start", tmp_path)
    assert script == redis


def tool(name: str) -> str:
    return require(shutil.which(name), f"{name} is not installed")


@pytest.mark.parametrize("name", ["prometheus", "alertmanager"])
def test_prometheus_and_alertmanager_know_every_option(name: str) -> None:
    program = tool({"alertmanager": "prometheus-alertmanager"}.get(name, name))
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    known = help_text.stdout + help_text.stderr
    options = [part.partition("=")[0] for part in SERVICES[name]["command"]]
    assert [option for option in options if option not in known] == []


def of_the_ml_environment(name: str) -> str:
    return require(beside(Settings().ml_python, name), f"{name} is not beside {Settings().ml_python}")


PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
print(*(parser.parse_args(arguments).port for arguments in json.load(sys.stdin)))
"""


@pytest.mark.timeout(300)
def test_vllm_takes_what_the_workers_start_it_with() -> None:
    """`vllm serve`, of every config that ships; one process, since importing vLLM takes half a minute."""
    of_the_ml_environment("vllm")
    configs = [load_config(path) for path in sorted((ROOT / "configs").glob("*.yaml"))]
    names, model = ("digits", "digits-v1"), Path("/var/lib/vlmops/runs/one/export/model")
    launches = [
        Launch(model=model, names=names, serving=config.serving, images=config.images, hardware=config.hardware)
        for config in configs
    ]
    assert {launch.hardware.device for launch in launches} == {"cpu", "cuda"}
    asked = json.dumps([launch.command(8801)[len(VLLM) :] for launch in launches])
    parse = ["nice", "-n", "19", Settings().ml_python, "-c", PARSE]
    parsed = subprocess.run(parse, input=asked, capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr[-2000:]
    assert parsed.stdout.split()[-len(launches) :] == ["8801"] * len(launches)


def test_caddy_takes_what_the_front_writes_in_its_container(tmp_path: Path) -> None:
    """`caddy validate`, with the config that .env names; the front does so itself before it starts."""
    caddy = of_the_ml_environment("caddy")
    told = service_environment("front", VALUES)
    settings = Settings(home=tmp_path, front_host=told["VLMOPS_FRONT_HOST"])
    serving = load_config(ROOT / told["VLMOPS_CONFIG"]).serving
    settings.serving.mkdir(parents=True)
    file = settings.serving / "Caddyfile"
    file.write_text(render_caddyfile(settings, serving, settings.serving / "ready", "X-Key"))
    checked = [caddy, "validate", "--config", str(file), "--adapter", "caddyfile"]
    folders = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    answer = subprocess.run(checked, env={**os.environ, **folders}, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    file.write_text(file.read_text().replace("reverse_proxy", "reverse_prxy"))
    assert subprocess.run(checked, env={**os.environ, **folders}, capture_output=True, check=False).returncode != 0


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
    told = service_environment("front", VALUES)["VLMOPS_FRONT_HOST"]
    rendered = render_caddyfile(Settings(home=tmp_path, front_host=told), smoke.serving, tmp_path, "X-Key")
    assert "http://:8800 {\n\tbind 0.0.0.0\n" in rendered
    assert rendered.count("bind 127.0.0.1") == 1  # readiness stays inside
    assert "bind 0.0.0.0" not in render_caddyfile(Settings(home=tmp_path), smoke.serving, tmp_path, "X-Key")
