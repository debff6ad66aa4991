"""A Compose file: one engine on one other machine, on loopback, for a front or a proxy there."""

from __future__ import annotations

from urllib.parse import unquote, urlparse

from serving.exporters.document import Document
from serving.exporters.kubernetes import PERIOD_SECONDS, ending_seconds, identity, object_name
from serving.exporters.place import MODELS, PORT, Place
from serving.release import Release


def to_compose(release: Release, place: Place) -> Document:
    """The release as a Compose file. `VLMOPS_MODEL` moves the model's folder, `VLMOPS_PORT` the port."""
    folder = unquote(urlparse(release.model.uri).path)
    where = {"type": "bind", "source": f"${{VLMOPS_MODEL:-{_plain(folder)}}}", "target": MODELS, "read_only": True}
    names = ["--served-model-name", *release.names]
    engine = {
        "image": place.image,
        "entrypoint": ["vllm", "serve"],
        "command": [MODELS, "--host", "0.0.0.0", "--port", str(PORT), *names, *map(_plain, release.engine.arguments)],
        "environment": dict(sorted(release.engine.environment.items())),
        "labels": identity(release),
        # Whoever reaches this port needs no key, and may call what the front does not let through.
        "ports": [f"127.0.0.1:${{VLMOPS_PORT:-{PORT}}}:{PORT}"],
        "volumes": [where],
        "shm_size": "2gb",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{ending_seconds(release)}s",
        "healthcheck": _healthcheck(release),
        **_card(release),
    }
    return {"name": object_name(release), "services": {"engine": engine}}


def _healthcheck(release: Release) -> Document:
    look = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}{release.probes.readiness}')"
    return {
        "test": ["CMD", "python3", "-c", look],
        "interval": f"{PERIOD_SECONDS}s",
        "timeout": f"{PERIOD_SECONDS}s",
        "retries": 3,
        "start_period": f"{release.probes.start_seconds}s",
    }


def _card(release: Release) -> Document:
    if not release.resources.gpus:
        return {}
    card = {"driver": "nvidia", "count": release.resources.gpus, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [card]}}}}


def _plain(text: str) -> str:
    """A text in which Compose finds no variable."""
    return text.replace("$", "$$")
