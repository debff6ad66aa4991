"""The adapter's update, one matrix at a time: read from PEFT's files, added in fp32, rounded to the base's type."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipelines.errors import ExportRejected
from training.adapter import CONFIG, WEIGHTS, unpack_experts

UNSUPPORTED = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "modules_to_save",
    "use_qalora",
    "layer_replication",
)
"""Options of PEFT that change what a merge is; an adapter that uses one is refused, not merged wrongly."""


@dataclass(frozen=True)
class ExpertShape:
    """Widths of a mixture of experts, from the model's config."""

    experts: int
    hidden: int
    width: int

    def stack(self, leaf: str) -> tuple[int, int]:
        """(out, in) of one matrix in a fused stack."""
        return (2 * self.width, self.hidden) if leaf == "gate_up_proj" else (self.hidden, self.width)


@dataclass(frozen=True)
class Factors:
    """Names and type of one target's update in the adapter's file."""

    a: str
    b: str
    fused: bool
    """Whether the two matrices hold all experts of a stack."""


class LoraReader:
    """An adapter, read target by target."""

    def __init__(self, folder: Path, experts: ExpertShape | None) -> None:
        """Open an adapter and check all of it.

        Args:
            folder: In PEFT's layout.
            experts: Widths of the base's experts; None if it is dense.

        Raises:
            ExportRejected: A flavour of LoRA that cannot be merged here, a tensor that belongs to no target, or values
                that are not finite or all zero.
        """
        self.folder, self.experts = folder, experts
        self.scale = _scale(json.loads((folder / CONFIG).read_text()), folder)
        self.targets = self._targets()
        for name in self.targets:
            self._check(name)

    def update(self, name: str, expert: int | None = None, rows: slice = slice(None)) -> torch.Tensor | None:
        """What is to be added to some rows of a base tensor, or of one expert's matrix: [rows, in], fp32.

        None if the adapter leaves the tensor alone.
        """
        if name not in self.targets:
            return None
        a, b = self._factors(name)
        if expert is not None:
            a, b = a[expert], b[expert]
        return self.scale * (b[rows] @ a)

    def _targets(self) -> dict[str, Factors]:
        """Update by name of the base tensor that it changes."""
        names = self._shapes()
        targets: dict[str, Factors] = {}
        for a in [name for name in names if name.endswith(".lora_A.weight")]:
            b = a.replace(".lora_A.", ".lora_B.")
            if b not in names:
                raise ExportRejected(f"{self.folder}: {a} has no {b}")
            module = a.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            fused = re.fullmatch(r"(.*\.experts)(\.base_layer)?", module)
            target = f"{fused[1]}.{self._leaf(names[a], names[b])}" if fused else f"{module}.weight"
            targets[target] = Factors(a, b, fused is not None)
        used = {name for factors in targets.values() for name in (factors.a, factors.b)}
        if unused := sorted(set(names) - used):
            raise ExportRejected(f"{self.folder}: nothing is known to do with {', '.join(unused[:4])}")
        return targets

    def _leaf(self, a: tuple[int, ...], b: tuple[int, ...]) -> str:
        """Which stack an update of experts belongs to: PEFT's names tell an order of wrapping, so shapes decide."""
        assert self.experts is not None, "an adapter of experts for a base without them"
        for leaf in ("gate_up_proj", "down_proj"):
            if (b[0], a[1]) == self.experts.stack(leaf):
                return leaf
        raise ExportRejected(f"{self.folder}: an update of {b[0]} x {a[1]} fits no stack of the base's experts")

    def _check(self, name: str) -> None:
        for tensor in self._factors(name):
            if not torch.isfinite(tensor).all():
                raise ExportRejected(f"{self.folder}: the update of {name} holds NaN or infinity; train again")
            if not tensor.any():
                raise ExportRejected(f"{self.folder}: the update of {name} is all zero: nothing was learned there")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        with safe_open(self.folder / WEIGHTS, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict

    @lru_cache(maxsize=2)  # noqa: B019 - one reader per export; keeps the two stacks of a layer, never the whole file
    def _factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        factors = self.targets[name]
        with safe_open(self.folder / WEIGHTS, "pt") as file:
            a, b = file.get_tensor(factors.a).float(), file.get_tensor(factors.b).float()
        if factors.fused:
            assert self.experts is not None
            a, b = unpack_experts(a, b, self.experts.experts)
            return a.contiguous(), b.contiguous()
        return a, b


def add_update(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """The sum, computed in fp32 and rounded once to the weight's own type, as PEFT's merge in fp32 rounds."""
    return (weight.float() + update).to(weight.dtype)


def _scale(config: dict[str, Any], folder: Path) -> float:
    used = [option for option in UNSUPPORTED if config.get(option)]
    if used or config.get("bias", "none") != "none":
        raise ExportRejected(f"{folder}: {', '.join(used) or 'bias'} in {CONFIG} cannot be merged; train plain LoRA")
    rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return float(config["lora_alpha"]) / float(rank)
