"""vLLM production-stack: values for its Helm chart."""

from __future__ import annotations

from serving.exporters.document import Document
from serving.exporters.kubernetes import (
    PERIOD_SECONDS,
    environment,
    identity,
    mounts,
    object_name,
    resources,
    volumes,
)
from serving.exporters.place import PORT, Place
from serving.release import Release


def to_production_stack(release: Release, place: Place) -> Document:
    """The release as Helm values.

    Raises:
        BadInput: The place has no claim.
    """
    claim = place.in_cluster()
    repository, _, tag = place.image.rpartition(":")
    model = {
        "name": object_name(release),
        "annotations": identity(release),
        "repository": repository,
        "tag": tag,
        "modelURL": claim.folder,
        "replicaCount": 1,
        "requestCPU": release.resources.cpus,
        "requestMemory": f"{release.resources.host_gib}Gi",
        "requestGPU": release.resources.gpus,
        "resources": resources(release),
        "env": environment(release),
        "extraVolumes": volumes(claim),
        "extraVolumeMounts": mounts(),
        "vllmConfig": {
            "enablePrefixCaching": True,  # unset, the chart switches off what vLLM does by itself
            "extraArgs": ["--served-model-name", *release.names, *release.engine.arguments],
        },
    }
    return {
        "servingEngineSpec": {
            "enableEngine": True,
            "containerPort": PORT,
            # A second engine finds no room on a full card: the old one goes first, while others answer.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "startupProbe": _startup(release),
            "modelSpec": [model],
        },
        "routerSpec": {"enableRouter": True, "replicaCount": 1},
    }


def _startup(release: Release) -> Document:
    return {
        "initialDelaySeconds": PERIOD_SECONDS,
        "periodSeconds": PERIOD_SECONDS,
        "failureThreshold": -(-release.probes.start_seconds // PERIOD_SECONDS),
        "httpGet": {"path": release.probes.health, "port": PORT},
    }
