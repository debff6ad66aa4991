"""A step as a pod: valid for the Kubernetes API, the same command, nothing secret in clear, and refused in time."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiClient

from pipelines.budget.base import find_base
from pipelines.budget.plan import make_plan
from pipelines.cli import main
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import BadInput, MachineUnfit
from pipelines.launch import command
from pipelines.pod import GIB, _name, pod
from pipelines.pod_commands import executor_config
from pipelines.run import Run
from pipelines.settings import ROOT, Pods, Settings
from pipelines.steps import DOWNLOAD, EVALUATE, EXPORT, FINETUNE, GATE, PREPARE, PROMOTE, RETRAIN, Step
from tests import fake_python

MLFLOW = "http://mlflow.vlmops.svc:5000"
VERSIONS = ("1.29", "1.37")
PODS = Pods(
    core_image="registry.local/vlmops-core:1",
    ml_image="registry.local/vlmops-ml:1",
    data_claim="data",
    node_selector={"nvidia.com/gpu.product": "NVIDIA-L40S"},
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"mlflow_uri": MLFLOW})


def _run(settings: Settings, name: str = "first", *overrides: str) -> Run:
    return Run.create(settings.runs / name, load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", overrides))


def _with(settings: Settings, **hardware: object) -> Run:
    config = load_config(ROOT / "configs" / "qwen3_vl_30b.yaml")
    changed = config.hardware.model_copy(update=hardware)
    return Run.create(settings.runs / "other", config.model_copy(update={"hardware": changed}))


def _pod(step: Step[Any], run: Run, settings: Settings, pods: Pods = PODS) -> dict[str, Any]:
    plan = make_plan(run.config, find_base(run.config.model.source, settings))
    return pod(step, run, settings, pods, plan)


def _container(described: dict[str, Any]) -> dict[str, Any]:
    (found,) = described["spec"]["containers"]
    return found


def _environment(described: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in _container(described)["env"] if "value" in one}


@pytest.mark.parametrize("step", RETRAIN, ids=lambda step: step.name)
def test_the_api_takes_it_and_knows_every_field(step: Step[Any], settings: Settings) -> None:
    described = _pod(step, _run(settings), settings)
    for version in VERSIONS:
        kubernetes_validate.validate(described, version, strict=True)
    client = ApiClient()
    read = client.deserialize(_Answer(described), "V1Pod")
    assert client.sanitize_for_serialization(read) == described


class _Answer:
    """What the API's client reads objects from."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.data = json.dumps(described)


def test_a_field_that_the_api_does_not_know_is_found(settings: Settings) -> None:
    described = _pod(GATE, _run(settings), settings)
    described["spec"]["activeDeadline"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(described, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("step", [FINETUNE, GATE], ids=lambda step: step.name)
def test_its_command_is_the_steps_own(step: Step[Any], settings: Settings) -> None:
    run = _run(settings)
    found = _container(_pod(step, run, settings))["command"]
    assert found[1:] == command(step, run.root, settings)[1:]
    assert found[0] == f"/opt/vlmops/{'.venv-ml' if step.environment == 'ml' else '.venv'}/bin/python"


def test_its_command_runs_with_its_environment_alone(settings: Settings, tmp_path: Path, smoke: Config) -> None:
    run = Run.create(settings.runs / "one", smoke)
    described = _pod(DOWNLOAD, run, settings.model_copy(update={"mlflow_uri": "http://192.0.2.1:9"}))
    python = fake_python.install(tmp_path)
    environment = {**_environment(described), "PATH": os.environ["PATH"]}
    subprocess.run([python, *_container(described)["command"][1:]], env=environment, check=True, timeout=60)
    assert run.finished(DOWNLOAD)


def test_volumes_lie_where_paths_in_results_say(settings: Settings) -> None:
    described = _pod(FINETUNE, _run(settings), settings)
    mounts = {one["name"]: one["mountPath"] for one in _container(described)["volumeMounts"]}
    assert mounts == {
        "home": str(settings.home), "cache": str(settings.cache), "data": "/data", "shared-memory": "/dev/shm",
    }  # fmt: skip
    assert {one["name"] for one in described["spec"]["volumes"]} == set(mounts)


def test_cards_are_asked_for_by_those_who_use_them(settings: Settings) -> None:
    run = _with(settings, gpus=2)
    cards = {
        step: _container(_pod(step, run, settings))["resources"]["limits"].get("nvidia.com/gpu")
        for step in (PREPARE, FINETUNE, EXPORT, EVALUATE, GATE)
    }
    assert cards == {PREPARE: None, FINETUNE: "2", EXPORT: "1", EVALUATE: "1", GATE: None}
    assert _pod(FINETUNE, run, settings)["spec"]["nodeSelector"] == PODS.node_selector
    assert "nodeSelector" not in _pod(GATE, run, settings)["spec"]


def test_on_a_cpu_no_card_is_asked_for(settings: Settings, smoke: Config) -> None:
    described = _pod(FINETUNE, Run.create(settings.runs / "cpu", smoke), settings)
    assert set(_container(described)["resources"]["limits"]) == {"memory"}
    assert "PYTORCH_ALLOC_CONF" not in _environment(described)


def test_memory_is_what_the_plan_says_where_that_is_more(settings: Settings) -> None:
    plain, calibrated = _run(settings), _run(settings, "calibrated", "export.scheme=gptq_int8")
    streams, holds = (_memory(_pod(EXPORT, run, settings)) for run in (plain, calibrated))
    assert streams == pytest.approx((PODS.memory_gib + PODS.shared_memory_gib) * GIB)
    needed = make_plan(calibrated.config, find_base(calibrated.config.model.source, settings)).host.memory_bytes
    assert needed > 2 * PODS.memory_gib * GIB
    assert holds == pytest.approx(needed + PODS.shared_memory_gib * GIB, rel=1e-3)


def _memory(described: dict[str, Any]) -> float:
    resources = _container(described)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    return float(resources["limits"]["memory"].removesuffix("Mi")) * 2**20


def test_no_secret_is_in_clear(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "SOMETHING_ELSE"):
        monkeypatch.setenv(key, "hunter2")
    run = _run(settings)
    download, finetune = _pod(DOWNLOAD, run, settings), _pod(FINETUNE, run, settings)
    assert "hunter2" not in yaml.safe_dump_all([download, finetune])
    hidden = [
        {one["name"]: one["valueFrom"]["secretKeyRef"] for one in _container(described)["env"] if "value" not in one}
        for described in (download, finetune)
    ]
    assert hidden[0]["HF_TOKEN"] == {"name": "vlmops", "key": "HF_TOKEN", "optional": True}
    assert "HF_TOKEN" not in hidden[1]  # nobody has what it does not need
    assert "MLFLOW_TRACKING_PASSWORD" in hidden[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (None, "is not set"),
        ("http://127.0.0.1:5000", "outer address"),
        ("http://localhost:5000", "outer address"),
        ("https://me:hunter2@mlflow.example", "VLMOPS_POD_SECRET"),
    ],
)
def test_mlflow_must_be_found_from_a_pod(address: str | None, reason: str, settings: Settings) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        _pod(GATE, _run(settings), settings.model_copy(update={"mlflow_uri": address}))
    assert "hunter2" not in str(caught.value)


def test_what_cannot_work_is_refused(settings: Settings, tmp_path: Path) -> None:
    run = _run(settings, "first", "data.source=file:///elsewhere/products")
    with pytest.raises(BadInput, match="would end with the pod"):
        _pod(PROMOTE, run, settings)
    with pytest.raises(BadInput, match="VLMOPS_POD_DATA_CLAIM"):
        _pod(PREPARE, run, settings)
    with pytest.raises(BadInput, match="VLMOPS_POD_ML_IMAGE"):
        _pod(FINETUNE, run, settings, Pods(core_image="core"))
    with pytest.raises(BadInput, match="not below VLMOPS_HOME"):
        _pod(GATE, Run.create(tmp_path / "elsewhere", run.config), settings)


@pytest.mark.parametrize(
    ("step", "field", "named"),
    [
        (DOWNLOAD, "model.source", "file://{}/base"),
        (PREPARE, "data.source", "file://{}/products"),
        (EVALUATE, "evaluate.scenarios", "{}/pack"),
    ],
    ids=lambda given: getattr(given, "name", None),
)
def test_files_that_a_step_reads_are_seen_by_its_pod(
    step: Step[Any], field: str, named: str, settings: Settings
) -> None:
    config = load_config(ROOT / "configs" / "qwen3_vl_30b.yaml")
    section, _, name = field.partition(".")

    def run(folder: str) -> Run:
        value = named.format(folder)
        changed = getattr(config, section).model_copy(update={name: (value,) if name == "scenarios" else value})
        return Run.create(settings.runs / folder.replace("/", "-"), config.model_copy(update={section: changed}))

    with pytest.raises(BadInput, match=f"{field} .*/elsewhere/.* is not seen by a pod"):
        pod(step, run("/elsewhere"), settings, PODS, make_plan(config, find_base(config.model.source, settings)))
    for seen in ("/data", str(settings.home / "ours")):
        assert pod(step, run(seen), settings, PODS, make_plan(config, find_base(config.model.source, settings)))


def test_a_mirror_is_told_to_who_downloads(settings: Settings) -> None:
    names = {
        step: {one["name"] for one in _container(_pod(step, _run(settings), settings))["env"]}
        for step in (DOWNLOAD, FINETUNE)
    }
    mirrors = {"HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_REGION"}
    assert mirrors <= names[DOWNLOAD]
    assert not mirrors & names[FINETUNE]


def test_a_card_that_is_too_small_is_said_before_it_is_asked_for(settings: Settings) -> None:
    small = _with(settings, memory_gib=12.0)
    for step in (FINETUNE, EVALUATE):
        with pytest.raises(MachineUnfit, match=r"l40s_48gb allows 1\d\.\d GiB"):
            _pod(step, small, settings)
    assert _pod(PREPARE, small, settings)


@given(st.text(min_size=1, max_size=200))
def test_a_name_is_a_dns_label(name: str) -> None:
    label = _name(f"vlmops-{name}-gate")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", label)


def test_names_that_had_to_be_changed_stay_apart() -> None:
    assert len({_name("vlmops-a.b-gate"), _name("vlmops-a_b-gate"), _name("vlmops-a-b-gate")}) == 3


def test_the_command_line_prints_it(
    settings: Settings, smoke: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(settings.runs / "one", smoke)
    for key, value in (("MLFLOW_URI", MLFLOW), ("POD_ML_IMAGE", "ml:1"), ("POD_NODE_SELECTOR", '{"a": "b"}')):
        monkeypatch.setenv(f"VLMOPS_{key}", value)
    monkeypatch.chdir(settings.home)  # a path from here means nothing in a pod
    assert main(["pod", "runs/one", "finetune"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    kubernetes_validate.validate(printed, VERSIONS[-1], strict=True)
    assert printed["metadata"]["name"] == "vlmops-one-finetune"
    assert _container(printed)["command"][-2:] == [str(run.root), "finetune"]


def test_without_images_a_task_is_no_pod(settings: Settings) -> None:
    assert executor_config(FINETUNE, settings) == {}
