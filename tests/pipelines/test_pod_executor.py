"""A task of Airflow's KubernetesExecutor: the pod that Airflow makes of what a step's task brings."""

from __future__ import annotations

from tests import airflow_home  # noqa: F401  # isort: skip  before airflow is imported

import json
import pickle
from typing import Any

import kubernetes_validate
import pytest
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.serialization.serialized_objects import BaseSerialization
from kubernetes.client import ApiClient, Configuration, V1Container, V1ObjectMeta, V1Pod, V1PodSpec

from pipelines.errors import BadInput
from pipelines.operators import StepOperator
from pipelines.settings import ROOT, Settings
from pipelines.steps import FINETUNE, GATE, PROMOTE, Step

ARGUMENTS = ["python", "-m", "airflow.sdk.execution_time.execute_workload"]


@pytest.fixture
def cluster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine whose tasks are pods."""
    monkeypatch.setenv("VLMOPS_MLFLOW_URI", "http://mlflow.vlmops.svc:5000")
    monkeypatch.setenv("VLMOPS_CONFIG", str(ROOT / "configs" / "qwen3_vl_30b.yaml"))
    monkeypatch.setenv("VLMOPS_POD_CORE_IMAGE", "core:1")
    monkeypatch.setenv("VLMOPS_POD_ML_IMAGE", "ml:1")
    return settings


def _override(step: Step[Any]) -> V1Pod:
    return StepOperator(step=step, run_dir="run").executor_config["pod_override"]


def _made(step: Step[Any]) -> dict[str, Any]:
    """What the executor makes of it: its own pod, with ours laid over."""
    base = V1Pod(
        api_version="v1", kind="Pod", metadata=V1ObjectMeta(name="task"),
        spec=V1PodSpec(containers=[V1Container(name="base", image="airflow", args=ARGUMENTS)], restart_policy="Never"),
    )  # fmt: skip
    laid = PodGenerator.reconcile_pods(base, _override(step))
    return json.loads(json.dumps(ApiClient(configuration=Configuration()).sanitize_for_serialization(laid)))


@pytest.mark.parametrize("step", [FINETUNE, GATE], ids=lambda step: step.name)
def test_the_pod_is_airflows_with_our_image_and_cards(step: Step[Any], cluster: Settings) -> None:
    made = _made(step)
    kubernetes_validate.validate(made, "1.37", strict=True)
    (container,) = made["spec"]["containers"]
    assert container["args"] == ARGUMENTS
    assert container["image"] == ("ml:1" if step.environment == "ml" else "core:1")
    assert container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if step.gpu else None)
    assert {"name": "VLMOPS_HOME", "value": str(cluster.home)} in container["env"]


def test_it_reaches_the_executor_whole(cluster: Settings) -> None:
    pod = _override(FINETUNE)
    assert pickle.loads(pickle.dumps(pod)) == pod  # onto the executor's queue
    stored = json.loads(json.dumps(BaseSerialization.serialize({"pod_override": pod})))  # into the database
    assert BaseSerialization.deserialize(stored)["pod_override"] == pod


def test_an_engine_does_not_start_in_a_pod_that_ends(cluster: Settings) -> None:
    assert StepOperator(step=PROMOTE, run_dir="run").executor_config == {}


def test_without_images_no_task_is_a_pod(settings: Settings) -> None:
    assert StepOperator(step=FINETUNE, run_dir="run").executor_config == {}


def test_a_pod_without_a_registry_is_refused_where_the_dag_is_read(
    cluster: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLMOPS_MLFLOW_URI")
    with pytest.raises(BadInput, match="VLMOPS_MLFLOW_URI"):
        StepOperator(step=FINETUNE, run_dir="run")
