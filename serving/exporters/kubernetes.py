"""What every manifest for Kubernetes says alike: names, environment, resources, probes, volumes."""

from __future__ import annotations

import math
import re

from serving.exporters.document import Document
from serving.exporters.place import MODELS, PORT, Claim
from serving.release import Release

PERIOD_SECONDS = 10
LEAVE_SECONDS = 15
"""Before an engine is told to end: until no router sends it anything any more."""


def object_name(release: Release) -> str:
    """The public name as a Service may have it (RFC 1035): at most 63 of a-z, 0-9 and hyphens, and a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", release.name).strip("-")
    return (name if name[:1].isalpha() else f"model-{name}")[:63].strip("-")


def identity(release: Release) -> dict[str, str]:
    """What a person or a program finds on the object: which version it is, and which bytes."""
    return {
        "vlmops/registered-model": release.registered,
        "vlmops/version": str(release.version),
        "vlmops/model-digest": release.model.digest,
    }


def environment(release: Release) -> list[Document]:
    """The engine's environment, as a container has it."""
    return [{"name": name, "value": value} for name, value in sorted(release.engine.environment.items())]


def resources(release: Release) -> Document:
    """Memory and cores are requested and not limited: a limit would end an engine that works."""
    wanted = release.resources
    cards = {"nvidia.com/gpu": str(wanted.gpus)} if wanted.gpus else {}
    requests = {"cpu": str(wanted.cpus), "memory": f"{wanted.host_gib}Gi", **cards}
    return {"requests": requests, "limits": cards} if cards else {"requests": requests}


def probes(release: Release, scheme: str) -> Document:
    """It has its whole deadline to start, is out of service while it does not answer, and is restarted after that."""

    def get(path: str, failures: int, **more: int) -> Document:
        look = {"httpGet": {"path": path, "port": PORT, "scheme": scheme}, "periodSeconds": PERIOD_SECONDS}
        return {**look, "timeoutSeconds": PERIOD_SECONDS, "failureThreshold": failures, **more}

    starting = math.ceil(release.probes.start_seconds / PERIOD_SECONDS)
    return {
        "startupProbe": get(release.probes.readiness, starting),
        "readinessProbe": get(release.probes.readiness, 3),
        "livenessProbe": get(release.probes.health, 6),
    }


def ending_seconds(release: Release) -> int:
    """From the order to end an engine to its being killed."""
    return LEAVE_SECONDS + release.probes.drain_seconds + PERIOD_SECONDS


def volumes(claim: Claim) -> list[Document]:
    """The files, and shared memory for vLLM's processes."""
    held = {"claimName": claim.name, "readOnly": True}
    return [
        {"name": "models", "persistentVolumeClaim": held},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]


def mounts() -> list[Document]:
    """Where both are."""
    return [
        {"name": "models", "mountPath": MODELS, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  in the container
    ]
