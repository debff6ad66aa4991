"""Ray Serve LLM: an application in a RayService of KubeRay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipelines.errors import BadInput
from serving.exporters.document import Document, to_yaml
from serving.exporters.kubernetes import ending_seconds, identity, mounts, object_name, resources, volumes
from serving.exporters.place import Claim, Place
from serving.release import Release

LISTS = {"--allowed-media-domains"}
"""Flags whose argument is a list, also where it has one element."""

HEAD = {"requests": {"cpu": "2", "memory": "8Gi"}}
"""What the head of a small Ray cluster takes."""


def to_rayservice(release: Release, place: Place) -> Document:
    """The release as a RayService. Its application answers to the public name alone: Ray allows one.

    Raises:
        BadInput: The place has no claim, or the release is for a CPU.
    """
    if not release.resources.gpus:
        raise BadInput("Ray Serve LLM computes on cards, and this release is for a CPU; leave out rayservice")
    claim = place.in_cluster()
    head = _template(_container("ray-head", place, HEAD), claim, ending_seconds(release))
    worker = _template(_container("ray-worker", place, resources(release)), claim, ending_seconds(release))
    engines = {"groupName": "engines", "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": object_name(release), "annotations": identity(release)},
        "spec": {
            "serveConfigV2": to_yaml({"applications": [_application(release, claim)]}),
            "rayClusterConfig": {
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},  # engines run on the workers
                "workerGroupSpecs": [{**engines, "rayStartParams": {}, "template": worker}],
            },
        },
    }


def _application(release: Release, claim: Claim) -> Document:
    model = {
        "model_loading_config": {"model_id": release.name, "model_source": claim.folder},
        "engine_kwargs": to_kwargs(release.engine.arguments),
        "deployment_config": {
            "num_replicas": 1,
            "graceful_shutdown_timeout_s": release.probes.drain_seconds,
        },
    }
    return {
        "name": object_name(release),
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "runtime_env": {"env_vars": dict(sorted(release.engine.environment.items()))},
        "args": {"llm_configs": [model]},
    }


def to_kwargs(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags of `vllm serve` as the fields that they set.

    Args:
        arguments: Flags, each with its value after it, or without one.
    """
    kwargs: dict[str, Any] = {}
    for here, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if here.startswith("--"):
            value = True if following.startswith("--") else _value(following)
            kwargs[here.removeprefix("--").replace("-", "_")] = [value] if here in LISTS else value
    return kwargs


def _value(text: str) -> Any:
    """A number or an object where it is one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _container(name: str, place: Place, wanted: Document) -> Document:
    return {"name": name, "image": place.image, "resources": wanted, "volumeMounts": mounts()}


def _template(container: Document, claim: Claim, ending: int) -> Document:
    return {
        "spec": {"terminationGracePeriodSeconds": ending, "containers": [container], "volumes": volumes(claim)},
    }
