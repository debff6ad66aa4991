"""The section `monitoring` of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.section import Section


class Inputs(Section):
    """Statistics of what is asked, held against the training set's. Numbers alone are kept: no image, no text, no name.

    What they say is "input changed", never "quality fell".
    """

    share: float = Field(0.05, ge=0, le=1)
    """Of the requests that come through the front, so many are looked at, one a second at most. 0: none."""

    window_hours: float = Field(24, gt=0)
    """The latest samples that are compared."""

    compare_minutes: float = Field(60, gt=0)
    """Between two comparisons; each is a check of `monitoring.retrain`."""

    min_samples: int = Field(200, ge=20)
    """Fewer say nothing: neither "changed" nor "as before"."""

    psi: float = Field(0.25, gt=0)
    """Population stability index from which an input counts as changed, if chance alone would not give as much."""

    days: int = Field(30, ge=1)
    """How long samples are kept."""

    refusals: tuple[str, ...] = (
        "i'm sorry", "i am sorry", "sorry,", "i can't", "i cannot", "i'm unable", "i am unable", "as an ai", "抱歉",
        "对不起", "我无法", "我不能",
    )  # fmt: skip
    """Beginnings of answers, in lower case, that count as refusals."""


class RetrainPolicy(Section):
    """When the monitor asks for a retrain: the Dag `monitor` tells Airflow so, by the Asset `retrain_requested`."""

    on: Literal["never", "input_changed"] = "never"
    """`input_changed`: when inputs differ from the training set's. `never`: that is shown, and a person decides."""

    checks: int = Field(3, ge=1)
    """Comparisons in a row that must agree before it asks, and as many of the contrary before it may ask again."""

    pause_hours: float = Field(168, gt=0)
    """Between two requests, whatever is seen: a retrain takes its time, and new data has to come from somewhere."""


class Monitoring(Section):
    """What is looked at in service, how often, and what follows."""

    probe_minutes: float = Field(10, gt=0)
    """Between two golden probes: each asks the engine a few questions, as a client would."""

    history_days: int = Field(30, ge=1)
    """How long what was seen is kept."""

    disk_gib: float = Field(20, ge=0)
    """Free space of the home and of the cache below which `DiskSpaceLow` stands; say twice a model."""

    backup_hours: float = Field(48, gt=0)
    """Age of the last backup from which `BackupTooOld` stands."""

    slo_seconds: float = Field(10, gt=0)
    """Latency of a whole answer that a request must keep to be counted as good; a bound of vLLM's histogram."""

    slo_share: float = Field(0.99, gt=0, lt=1)
    """Share of the requests that must be good."""

    inputs: Inputs = Inputs()
    """What is asked."""

    retrain: RetrainPolicy = RetrainPolicy()
    """What follows from it."""
