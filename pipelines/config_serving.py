"""The section `serving` of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.section import Section


class Serving(Section):
    """How the engine is run, in evaluation and in service alike."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """The model name that clients send."""

    strategy: Literal["restart"] = "restart"
    """How a new version takes over: hold requests, stop the old engine, start the new one, probe, release."""

    max_model_len: int = Field(8192, ge=64)
    """Longest prompt and answer, in tokens."""

    max_num_seqs: int = Field(64, ge=1)
    """Requests computed together."""

    max_num_batched_tokens: int = Field(8192, ge=64)
    """Tokens computed together."""

    images_per_request: int = Field(4, ge=1)
    """More are refused."""

    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of hardware.memory_gib that the engine takes; without effect on a CPU."""

    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache on a CPU; on a GPU the rest of its share is used."""

    start_seconds: float = Field(900, gt=0)
    """Deadline for the engine to answer."""

    drain_seconds: float = Field(120, gt=0)
    """Deadline for requests in flight before a swap."""

    hold_seconds: float = Field(900, gt=0)
    """How long the front holds a request during a swap before it answers 503."""

    probe_match: float = Field(1.0, gt=0, le=1)
    """Share of the golden answers that a newly started engine must repeat."""
