"""KServe: an LLMInferenceService, v1alpha2, whose container runs the release's own command line."""

from __future__ import annotations

from serving.exporters.document import Document
from serving.exporters.kubernetes import (
    LEAVE_SECONDS,
    ending_seconds,
    environment,
    identity,
    object_name,
    probes,
    resources,
)
from serving.exporters.place import MODELS, PORT, Place
from serving.release import Release

TLS = "/var/run/kserve/tls"
"""Where KServe puts the certificate of a workload: gateway and scheduler speak TLS to it, unless that is switched off
for the whole cluster."""


def to_kserve(release: Release, place: Place) -> Document:
    """The release as an LLMInferenceService.

    Raises:
        BadInput: The place has no claim.
    """
    certificate = ["--enable-ssl-refresh", "--ssl-certfile", f"{TLS}/tls.crt", "--ssl-keyfile", f"{TLS}/tls.key"]
    here = ["--host", "0.0.0.0", "--port", str(PORT), *certificate, "--served-model-name", *release.names]
    main = {
        "name": "main",
        "image": place.image,
        # KServe puts a flag of its own between texts; a command and arguments of ours replace them as a whole.
        "command": ["vllm", "serve", MODELS],
        "args": [*here, *release.engine.arguments],
        "env": environment(release),
        "resources": resources(release),
        **probes(release, "HTTPS"),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVE_SECONDS)]}}},
    }
    pod = {"terminationGracePeriodSeconds": ending_seconds(release), "containers": [main]}
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": object_name(release), "annotations": identity(release)},
        "spec": {
            "model": {"uri": place.in_cluster().uri, "name": release.name},
            "replicas": 1,
            "router": {"gateway": {}, "route": {}, "scheduler": {}},
            "template": pod,
        },
    }
