"""The section `serving` of the config."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, IPvAnyAddress, model_validator

from pipelines.section import Section


class Tls(Section):
    """HTTPS for other machines. Plain HTTP stays on loopback beside it, for this machine's own commands."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")
    """Host name, or IP address, that clients use."""

    bind: IPvAnyAddress = IPv4Address("0.0.0.0")
    """Address of this machine that is listened on; all of them, unless told."""

    port: int = Field(8843, ge=1, le=65535)
    """Where it listens."""

    certificate: Path | None = None
    """Chain in PEM. Unset: Caddy's own authority signs one; its root is in `caddy/pki` of the serving state."""

    key: Path | None = None
    """Private key of the certificate, in PEM."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both, or neither for Caddy's own authority")
        return self


class Serving(Section):
    """How the engine is run, in evaluation and in service alike."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """The model name that clients send."""

    strategy: Literal["auto", "restart", "reload", "adapter"] = "restart"
    """How a new version takes over while requests wait. `restart`: the old engine ends, another starts. `reload`: the
    running engine reads other weights, on a card and between versions that differ in nothing else. `adapter`: the
    running engine takes another adapter, between versions on one base (export.artifact). A promotion that could not do
    so is refused. `auto`: adapter or reload where that can be, else restart.
    """

    max_model_len: int = Field(8192, ge=64)
    """Longest prompt and answer, in tokens."""

    max_num_seqs: int = Field(64, ge=1)
    """Requests computed together."""

    max_num_batched_tokens: int = Field(8192, ge=64)
    """Tokens computed together."""

    max_waiting: int = Field(64, ge=0)
    """Requests that wait for a place among those computed; beyond them the answer is 503, at once."""

    images_per_request: int = Field(4, ge=1)
    """More are refused."""

    image_megapixels: int = Field(40, ge=1)
    """Size of an image beyond which it is refused before it is decoded: three bytes a pixel."""

    body_megabytes: int = Field(20, ge=1)
    """Size of a request, its images in base64 included; larger ones are refused."""

    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of hardware.memory_gib that the engine takes; without effect on a CPU."""

    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache on a CPU; on a GPU the rest of its share is used."""

    start_seconds: float = Field(900, gt=0)
    """Deadline for the engine to answer."""

    reload_seconds: float = Field(120, gt=0)
    """Deadline for a running engine to read other weights or an adapter; past it the old version is started anew."""

    drain_seconds: float = Field(120, gt=0)
    """Deadline for requests in flight before a swap."""

    at_deadline: Literal["abort", "cut"] = "abort"
    """What becomes of requests that are still computed then. `abort`: they go on, and the swap is given up. `cut`: they
    are lost, and counted. A way back to what served before cuts them in any case.
    """

    hold_seconds: float = Field(900, gt=0)
    """How long the front holds a request during a swap before it answers 503."""

    tls: Tls | None = None
    """HTTPS for other machines. Unset: loopback alone."""

    probe_match: float = Field(1.0, gt=0, le=1)
    """Share of the golden answers that a newly started engine must repeat."""

    watch_seconds: float = Field(30, ge=0)
    """How long a version is watched after its release, before it becomes `champion`: should its engine end, lose a
    request or no longer answer as it should, what served before comes back.
    """

    watch_match: float = Field(0.5, ge=0, le=1)
    """Share of the golden answers that must come again under traffic, where the others in a batch may move a close
    decision.
    """

    crashes: int = Field(3, ge=1)
    """Ends of an engine within `crash_minutes` after which what served before comes back; until then it is started
    again.
    """

    crash_minutes: float = Field(10, gt=0)
    """Over which they are counted."""
