"""A step as a pod of a Kubernetes cluster: the same command, in an image of ours, with what the plan says it needs.

Runs lie on a volume that is mounted where they lie here, so that paths in their results stay true.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.budget.plan import Plan, refusal
from pipelines.config import Config
from pipelines.errors import BadInput, MachineUnfit
from pipelines.launch import command, facts, presets
from pipelines.run import Run
from pipelines.settings import ROOT, Pods, Settings
from pipelines.steps import DOWNLOAD, EVALUATE, EXPORT, FINETUNE, PREPARE, PROMOTE, Step

GIB = 2**30

CHECKOUT = Path("/opt/vlmops")
"""Where docker/Dockerfile puts the code and both environments."""

DATA = Path("/data")
"""Where a claim of data is seen."""

USER = 1000
"""Of the images; files on the volumes are its own."""

REGISTRY_TOKENS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HUB_TOKENS = (
    "HF_TOKEN", "MODELSCOPE_API_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION",
)  # fmt: skip
"""Keys of the cluster's secret: of every step, and of `download` besides; a mirror's address is its business too."""

STOP_SECONDS = 60
"""Between SIGTERM and SIGKILL: a step ends what it has started."""


def pod(step: Step[Any], run: Run, settings: Settings, pods: Pods, plan: Plan) -> dict[str, Any]:
    """A step of a run as a pod, as the Kubernetes API takes it.

    Args:
        step: Any but `promote`.
        run: Lies below the home.
        settings: Of this machine; home, cache and the address of MLflow are the pod's as well.
        pods: Images, volumes and the nodes that are asked for.
        plan: Of the run's config.

    Raises:
        BadInput: Something is not set, or would not be found in the pod.
        MachineUnfit: The plan says that the step does not fit its card.
    """
    _require_reachable(step, run, settings, pods)
    container = {
        **_container(step, run.config, settings, pods, _memory_bytes(step, run.config, pods, plan)),
        "name": step.name,
        "command": command(step, run.root.resolve(), _inside(settings)),
        "workingDir": str(CHECKOUT),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        **_spec(step, run.config, settings, pods),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "automountServiceAccountToken": False,  # a step asks nothing of the cluster
        "containers": [container],
    }
    metadata = {"name": _name(f"vlmops-{run.name}-{step.name}"), "namespace": pods.namespace, **_labels(step)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def override(step: Step[Any], config: Config, settings: Settings, pods: Pods) -> dict[str, Any]:
    """What Airflow's KubernetesExecutor lays over the pod of a task: all but the command, which is Airflow's own.

    Args:
        step: Any but `promote`.
        config: Says how many cards train together; a run that asks for more gets no more.
        settings: Of this machine.
        pods: Images, volumes and the nodes that are asked for.
    """
    ours = _container(step, config, settings, pods, pods.memory_gib * GIB)
    container = {**ours, "name": "base"}  # as Airflow calls its own
    spec = {**_spec(step, config, settings, pods), "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _labels(step), "spec": spec}


def _container(step: Step[Any], config: Config, settings: Settings, pods: Pods, memory: float) -> dict[str, Any]:
    tokens = (*REGISTRY_TOKENS, *(HUB_TOKENS if step is DOWNLOAD else ()))
    named = {**presets(step, config), **facts(_inside(settings))}
    return {
        "image": _image(step, pods),
        "env": [{"name": key, "value": value} for key, value in sorted(named.items()) if value is not None]
        + [{"name": key, "valueFrom": {"secretKeyRef": _key(pods.secret, key)}} for key in tokens],
        "resources": _resources(step, config, pods, memory),
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({"readOnly": True} if name == "data" else {})
            for name, path, _ in _volumes(step, settings, pods)
        ],
    }


def _spec(step: Step[Any], config: Config, settings: Settings, pods: Pods) -> dict[str, Any]:
    volumes = [{"name": name, **source} for name, _, source in _volumes(step, settings, pods)]
    selector = {"nodeSelector": pods.node_selector} if _cards(step, config) and pods.node_selector else {}
    return {
        **selector,
        "activeDeadlineSeconds": round(pods.deadline_hours * 3600),
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
    }  # fmt: skip


def _key(secret: str, key: str) -> dict[str, Any]:
    return {"name": secret, "key": key, "optional": True}


def _labels(step: Step[Any]) -> dict[str, Any]:
    return {"labels": {"app.kubernetes.io/name": "vlmops", "app.kubernetes.io/component": step.name}}


def _volumes(step: Step[Any], settings: Settings, pods: Pods) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, path in the pod, and what it is."""
    found = [
        ("home", str(settings.home), _claim(pods.home_claim)),
        ("cache", str(settings.cache), _claim(pods.cache_claim)),
    ]
    if step.gpu:
        shared = {"medium": "Memory", "sizeLimit": f"{round(pods.shared_memory_gib * 1024)}Mi"}
        found.append(("shared-memory", "/dev/shm", {"emptyDir": shared}))  # noqa: S108  where processes share memory
    if pods.data_claim is not None:
        found.append(("data", str(DATA), _claim(pods.data_claim, read_only=True)))
    return found


def _claim(name: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name} | ({"readOnly": True} if read_only else {})}


def _resources(step: Step[Any], config: Config, pods: Pods, memory: float) -> dict[str, Any]:
    shared = pods.shared_memory_gib * GIB if step.gpu else 0
    amount = {"memory": f"{round((memory + shared) / 2**20)}Mi"}
    cards = {pods.gpu_resource: str(cards)} if (cards := _cards(step, config)) else {}
    return {"requests": {"cpu": f"{round(1000 * pods.cpus)}m", **amount, **cards}, "limits": {**amount, **cards}}


def _cards(step: Step[Any], config: Config) -> int:
    if not step.gpu or config.hardware.device == "cpu":
        return 0
    return config.hardware.gpus if step is FINETUNE else 1


def _memory_bytes(step: Step[Any], config: Config, pods: Pods, plan: Plan) -> float:
    """Host memory of a step: what every step is given, or what the plan says, where that is more.

    Raises:
        MachineUnfit: The card is too small.
    """
    sides = {FINETUNE.name: plan.sides[:1], EVALUATE.name: plan.sides[1:]}.get(step.name, ())
    for side in sides:
        if side.demand.verdict == "does not fit":
            raise MachineUnfit(refusal(config, side))
    needed = plan.host.memory_bytes if step is EXPORT else 0.0
    if config.hardware.device == "cpu":  # then what is planned is the host's memory
        needed = max([needed, *(side.demand.nbytes for side in sides)])
    return max(pods.memory_gib * GIB, needed)


def _image(step: Step[Any], pods: Pods) -> str:
    named = {"core": pods.core_image, "ml": pods.ml_image}[step.environment]
    if named is None:
        raise BadInput(
            f"VLMOPS_POD_{step.environment.upper()}_IMAGE is not set; build and push target {step.environment} of "
            f"docker/Dockerfile, and name it there"
        )
    return named


def _inside(settings: Settings) -> Settings:
    """The machine's facts as they are in the pod."""
    config = settings.config
    return settings.model_copy(
        update={
            "core_python": str(CHECKOUT / ".venv/bin/python"),
            "ml_python": str(CHECKOUT / ".venv-ml/bin/python"),
            "quantize_python": None,  # no image has it
            "config": CHECKOUT / config.relative_to(ROOT) if config.is_relative_to(ROOT) else config,
        }
    )


def _require_reachable(step: Step[Any], run: Run, settings: Settings, pods: Pods) -> None:
    if step is PROMOTE:
        raise BadInput("promote starts the engine, which would end with the pod; `vlmops release` has a cluster serve")
    if not run.root.resolve().is_relative_to(settings.home):
        raise BadInput(f"{run.root} is not below VLMOPS_HOME {settings.home}, which the pod sees; move it there")
    require_outside(settings)
    volumes = [settings.home, settings.cache, *([DATA] if pods.data_claim is not None else [])]
    for field, named in _files_of(step, run.config):
        if not any(Path(named.removeprefix("file://")).is_relative_to(volume) for volume in volumes):
            raise BadInput(f"{field} {named} is not seen by a pod; put it on VLMOPS_POD_DATA_CLAIM, below {DATA}")


def _files_of(step: Step[Any], config: Config) -> list[tuple[str, str]]:
    """What a step reads besides results and the cache: the field that names it, and what it names."""
    named = {
        DOWNLOAD: [("model.source", config.model.source)],
        PREPARE: [("data.source", config.data.source)],
        EVALUATE: [("evaluate.scenarios", pack) for pack in config.evaluate.scenarios],
    }
    return [(field, text) for field, text in named.get(step, []) if text.startswith(("file://", "/"))]


def require_outside(settings: Settings) -> None:
    """MLflow must be found from a pod, and its address is no place for a password.

    Raises:
        BadInput: It is not set, on loopback, or holds a password.
    """
    if settings.mlflow_uri is None:
        raise BadInput("VLMOPS_MLFLOW_URI is not set; a pod needs the address of an MLflow server")
    address = urlsplit(settings.mlflow_uri)
    if address.password is not None or address.username is not None:
        raise BadInput(
            "VLMOPS_MLFLOW_URI holds a password, which everybody who may read pods would see; "
            "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into the secret VLMOPS_POD_SECRET"
        )
    if address.hostname in {None, "localhost", "127.0.0.1", "::1"}:
        raise BadInput(f"VLMOPS_MLFLOW_URI {settings.mlflow_uri} is this machine itself; a pod needs its outer address")


def _name(wanted: str) -> str:
    """The same as a DNS label of at most 63 characters; names that had to be changed stay apart by a digest."""
    label = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if label == wanted and len(label) <= 63:
        return label
    return f"{label[:54].rstrip('-')}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
