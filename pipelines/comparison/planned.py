"""What the plan says of a scheme: what it needs of a card, and what it should have shown here."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipelines.budget.base import Base
from pipelines.budget.demand import GIB, Demand, Verdict
from pipelines.budget.exporting import file_bytes, group_objection
from pipelines.budget.serving import kv_bytes, kv_tokens, serving_demand
from pipelines.comparison.rows import Contestant, exported_as
from pipelines.config import Config
from pipelines.hardware import Hardware, objections
from pipelines.schemes import scheme_of
from pipelines.settings import ROOT

CARD = "l40s_48gb"
"""The profile that the verdict is about where nothing is served on a card."""


@dataclass(frozen=True)
class Planned:
    """The plan of one scheme."""

    card: str
    """That the verdict is about."""

    verdict: Verdict
    need_gib: float
    limit_gib: float
    weights_gib: float
    """On disk."""

    peak_gib: float
    """Of an engine on this run's own hardware, at least."""

    kv_tokens: int
    """That the KV cache will hold on this run's own hardware."""

    kv_token_bytes: int
    fits_here: bool
    """Whether this run's own hardware has the memory."""

    objection: str | None
    """Why this run's own hardware cannot serve it, or why it cannot be exported; None if it can."""

    @property
    def fits(self) -> str:
        """The verdict in words."""
        return f"{self.verdict} ({self.need_gib:.1f} of {self.limit_gib:.1f} GiB)"


def plan_of(name: Contestant, config: Config, base: Base) -> Planned:
    """What a config and the base's shape say of a scheme."""
    scheme = scheme_of(exported_as(name), config.export.group_size)
    here = serving_demand(config, base, scheme, name="serving")
    card = card_of(config)
    there = serving_demand(config.model_copy(update={"hardware": card}), base, scheme, name="serving")
    reasons = (
        _no_room(config, here),
        *objections(config.hardware, scheme),
        group_objection(base.shape, scheme),
        _no_float16(name, config.hardware),
    )
    return Planned(
        card=card.name,
        verdict=there.verdict,
        need_gib=there.nbytes / GIB,
        limit_gib=there.limit_bytes / GIB,
        weights_gib=file_bytes(base, scheme) / GIB,
        peak_gib=here.peak_bytes / GIB,
        kv_tokens=kv_tokens(config, base, here),
        kv_token_bytes=kv_bytes(base.shape),
        fits_here=here.verdict != "does not fit",
        objection=next((reason for reason in reasons if reason), None),
    )


def card_of(config: Config) -> Hardware:
    """The card that the verdict is about."""
    if config.hardware.device == "cuda":
        return config.hardware
    profile = yaml.safe_load((ROOT / "configs" / "hardware" / f"{CARD}.yaml").read_text())
    return Hardware.model_validate(profile)


def _no_room(config: Config, demand: Demand) -> str | None:
    if demand.verdict != "does not fit":
        return None
    need, limit = demand.nbytes / GIB, demand.limit_bytes / GIB
    return f"does not fit {config.hardware.name}: {need:.1f} of {limit:.1f} GiB"


def _no_float16(name: Contestant, hardware: Hardware) -> str | None:
    if name != "fp16" or hardware.device == "cuda":
        return None
    return f"{hardware.name} is a CPU, and few of them multiply in float16; compare fp16 on a card"


def stored_gib(model: Path) -> float:
    """Size of a model's tensors, by the headers of its safetensors files: eight bytes with its length, then JSON."""
    return sum(map(_tensor_bytes, model.glob("*.safetensors"))) / GIB


def _tensor_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
