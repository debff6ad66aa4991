"""What was seen at one moment. A source that does not answer is unknown, and says why: never taken for good."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from pipelines.artifact import Artifact
from pipelines.monitoring.drift import Comparison

Source = Literal["service", "engine", "front", "gpu", "probe", "disk", "backup", "runs", "inputs"]

GpuState = Literal["cards", "none", "unknown"]
"""`none`: there is no NVIDIA driver here, as on a CPU; `unknown`: there is one, and it does not answer."""


class ServiceFacts(Artifact):
    """Who serves, by the files and processes of the front and the promoter."""

    state: str
    """`serving`, `holding`, `unhealthy`, `unreachable`, `down` or `stopped`, as `vlmops serving status` says."""

    since: datetime | None = None
    """First look of those in a row that saw this state."""

    version: int | None = None
    """That serves now."""

    digest: str | None = None
    strategy: str | None = None
    champion: int | None = None
    """That passed its watch last."""

    transitions: dict[str, int] = Field(default_factory=dict)
    """Lines of the deploy log, by state."""

    last: dict[str, datetime] = Field(default_factory=dict)
    """Time of the last of them, by state."""


class EngineFacts(Artifact):
    """What the engine counts since it was started."""

    started: float
    """Seconds since 1970; another engine has another."""

    running: float
    waiting: float
    kv_usage: float
    """0 to 1."""

    preemptions: float
    finished: float
    lost: float
    """Ended by an abort or an error."""

    rejections: float | None = None
    """Refused since its queue was full. None: this engine does not count them."""

    latency: dict[float, float] = Field(default_factory=dict)
    """Whole answers by latency: requests that took so many seconds at most."""


class FrontFacts(Artifact):
    """What Caddy answered to clients since it was started."""

    answers: dict[str, float]
    """By status code."""


class Card(Artifact):
    """One card, by NVML. None: this card or driver does not tell."""

    index: int
    name: str
    uuid: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization: float | None
    """Share of the time in which some kernel ran, 0 to 1."""

    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None
    throttled: tuple[str, ...] | None
    """Why its clocks are lower than they could be, names of `THROTTLE_REASONS`."""

    ecc_uncorrected: int | None
    """Errors of its memory that could not be corrected, since the driver was loaded."""

    xids: dict[int, int] | None
    """Critical errors by number, since the monitor was started. None: only a monitor that goes on running sees them."""

    processes: dict[str, int] | None
    """By owner: `engine`, `run`, `other`; `unknown` is a process that this machine or container cannot see."""


class ProbeFacts(Artifact):
    """The last golden probe."""

    time: datetime
    version: int
    asked: int
    matched: int
    passed: bool
    """Whether so many golden answers came again as `serving.watch_match` demands, and none was ruined."""

    seconds: float
    why: str = ""
    """What was wrong."""

    last_passed: datetime | None = None


class Disk(Artifact):
    """A file system that the line writes to."""

    name: str
    free_bytes: int
    total_bytes: int


class RunFacts(Artifact):
    """The runs in the home."""

    runs: int
    decisions: dict[str, int]
    """Of the gate, by outcome."""

    last_outcome: str | None = None


class Snapshot(Artifact):
    """Everything that was seen at one moment."""

    time: datetime
    unknown: dict[Source, str] = Field(default_factory=dict)
    """Why a source could not be read."""

    service: ServiceFacts | None = None
    engine: EngineFacts | None = None
    front: FrontFacts | None = None
    gpu_state: GpuState = "unknown"
    cards: tuple[Card, ...] = ()
    probe: ProbeFacts | None = None
    disks: tuple[Disk, ...] = ()
    backup: datetime | None = None
    """Time of the last backup. None: there is none, or it is unknown."""

    runs: RunFacts | None = None
    inputs: tuple[Comparison, ...] = ()
    compared: datetime | None = None
    """When inputs were compared last. None: never."""

    reference: str | None = None
    """Digest of the version whose training set they were compared with."""

    rates: dict[str, float] = Field(default_factory=dict)
    """Shares of the sampled answers: `schema_valid` of those that had a schema, `refused` of those with text."""
