"""`release.json`: everything that another place needs to serve a version as it was measured here.

A release names what must be served (files by their digest), how (the engine's version and its arguments, letter for
letter those of the measurement), what that takes, and how to tell whether it serves. Who writes manifests from it is
in `serving/exporters`.
"""

from __future__ import annotations

import math
from datetime import datetime
from importlib.metadata import version as installed
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipelines.artifacts import ModelVersion
from pipelines.budget.base import Base
from pipelines.budget.demand import GIB
from pipelines.budget.serving import kv_tokens, serving_demand
from pipelines.config import Config
from pipelines.config_load import Slo
from pipelines.errors import BadInput
from serving.engine import environment, options
from serving.golden import golden_digest, read_golden
from serving.served import Served, served

OF_THIS_MACHINE = {"VLLM_HOST_IP"}
"""What our engine has in its environment because it is on loopback."""

HOST_GIB = 16
"""Host memory beside a card: Python, PyTorch and CUDA's side of two processes, and the 4 GiB in which vLLM keeps
processed images. An estimate, to be requested and not to be enforced."""

CPUS = 4
"""Cores beside a card: API server, engine core, image processing. Likewise."""


class Part(BaseModel):
    """A part of a release; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Model(Part):
    """The files."""

    uri: str
    """Where they lie on the machine that wrote the release."""

    digest: str
    """SHA-256 of their manifest.json, which has the SHA-256 of each: copies are right if it is equal."""

    scheme: str
    """What weights are stored as."""


class Engine(Part):
    """How they are served."""

    version: str
    """Of vLLM; another one may answer otherwise."""

    arguments: tuple[str, ...]
    """Of `vllm serve`, without model, names, address and keys."""

    environment: dict[str, str]


class Images(Part):
    """What becomes of a client's images."""

    min_pixels: int
    """Smaller ones are enlarged to so many pixels, by the engine."""

    max_pixels: int
    """Larger ones are shrunk to so many pixels, by the engine; a client saves upload by doing so before."""

    per_request: int
    """More are refused."""


class Resources(Part):
    """What one engine takes."""

    device: Literal["cpu", "cuda"]
    hardware: str
    """Profile that it was planned for."""

    capability: tuple[int, int] | None
    """Compute capability of its card; None on a CPU."""

    device_gib: float
    """Memory of the device that the profile allows."""

    needed_gib: float
    """The least that it starts with: one sequence of the greatest length. The rest goes to the KV cache."""

    kv_cache_tokens: int
    """That the KV cache is planned to hold."""

    host_gib: int
    cpus: int

    @property
    def gpus(self) -> int:
        """Cards of one engine."""
        return 1 if self.device == "cuda" else 0


class Probes(Part):
    """How to tell whether it serves. A golden answer that does not come again is another model, or a broken one."""

    health: str = "/health"
    """Answers 200 while the engine lives."""

    readiness: str = "/v1/models"
    """Lists the names once it answers to them."""

    start_seconds: int
    """Deadline for both after a start."""

    drain_seconds: int
    """For requests in flight before it is ended."""

    golden_digest: str
    """Of the golden questions, their images and their answers."""

    golden_count: int
    golden_match: float
    """Share that must come again, word for word."""


class Release(Part):
    """A version, to be served elsewhere."""

    schema_version: Literal[1] = 1
    """Of this file; it changes when a field is removed or means something else."""

    created: datetime
    registered: str
    """Name of the registered model in MLflow."""

    version: int
    names: tuple[str, str]
    """What requests may ask for: the public name, and the one that only this version has."""

    model: Model
    engine: Engine
    images: Images
    resources: Resources
    probes: Probes
    slo: Slo | None
    """Service level of `load.slo`. None: the config has none."""

    @property
    def name(self) -> str:
        """The public name."""
        return self.names[0]


def describe(config: Config, version: ModelVersion, base: Base, created: datetime) -> Release:
    """The release of a registered version.

    Args:
        config: Of the run that made it.
        version: As registered.
        base: Has its shape.
        created: Now.

    Raises:
        BadInput: Its files are not on this machine's disks, or it is an adapter.
    """
    now = served(config, version)
    if now.adapter is not None:
        raise BadInput(
            f"version {version.version} is an adapter on a base, and a release names one folder that an engine loads "
            f"alone; register a whole model to release it: run again with export.artifact merged"
        )
    # Elsewhere nobody reloads weights in a running engine: its names and arguments are those of one that is restarted.
    now = now.model_copy(update={"serving": now.serving.model_copy(update={"strategy": "restart"})})
    kept = {key: value for key, value in environment(now.serving, now.hardware).items() if key not in OF_THIS_MACHINE}
    arguments = tuple(options(now.serving, now.images, now.hardware))
    return Release(
        created=created,
        registered=version.name,
        version=version.version,
        names=(now.serving.name, now.name),
        model=Model(uri=version.uri, digest=version.digest, scheme=config.export.scheme),
        engine=Engine(version=installed("vllm").split("+")[0], arguments=arguments, environment=kept),
        images=Images(
            min_pixels=now.images.min_pixels,
            max_pixels=now.images.max_pixels,
            per_request=now.serving.images_per_request,
        ),
        resources=_resources(config.model_copy(update={"serving": now.serving}), base),
        probes=_probes(now),
        slo=config.load.slo,
    )


def _resources(config: Config, base: Base) -> Resources:
    demand = serving_demand(config, base, config.export.stored, name="serving")
    hardware, needed = config.hardware, demand.nbytes / GIB
    return Resources(
        device=hardware.device,
        hardware=hardware.name,
        capability=hardware.capability,
        device_gib=hardware.memory_gib,
        needed_gib=round(needed, 2),
        kv_cache_tokens=kv_tokens(config, base, demand),
        host_gib=HOST_GIB if hardware.device == "cuda" else math.ceil(needed) + 1,
        cpus=CPUS,
    )


def _probes(now: Served) -> Probes:
    golden = read_golden(now.golden)
    return Probes(
        start_seconds=math.ceil(now.serving.start_seconds),
        drain_seconds=math.ceil(now.serving.drain_seconds),
        golden_digest=golden_digest(now.golden),
        golden_count=len(golden),
        golden_match=now.serving.probe_match,
    )
