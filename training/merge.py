"""The adapter's update, one matrix at a time: read from PEFT's files, added in fp32, rounded to the base's type."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ExportRejected
from training.peft_layout import CONFIG, WEIGHTS
from training.weights.shards import Stored, read_header

UNDERSTOOD = (
    {"peft_type", "peft_version", "task_type", "auto_mapping", "revision", "base_model_name_or_path", "inference_mode"}
    | {"r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "init_lora_weights", "target_modules"}
    | {"target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"}
    | {"runtime_config", "qalora_group_size", "eva_config", "corda_config", "loftq_config", "lora_ga_config"}
    | {"velora_config"}
)
"""Options of PEFT that say nothing of the merge, or that are heeded. An adapter that uses any other (DoRA, patterns of
ranks, saved modules, and what future versions bring) is refused, not merged wrongly."""

INITIAL = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Of `init_lora_weights`. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) change the base before training."""

KEPT_TARGETS = 4
"""Of which the factors stay in memory: both stacks of a layer, and those of the next."""


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
class LowRank:
    """A low-rank update, scale * b^T a."""

    a: torch.Tensor
    """fp32 [rank, in]."""

    b: torch.Tensor
    """fp32 [rank, out]."""

    scale: float
    """alpha / rank, or alpha / sqrt(rank)."""

    def dense(self) -> torch.Tensor:
        """fp32 [out, in]."""
        return self.scale * (self.b.T @ self.a)

    def to(self, device: str) -> LowRank:
        """The same on another device."""
        return LowRank(self.a.to(device), self.b.to(device), self.scale)


@dataclass(frozen=True)
class Factors:
    """One target's update in the adapter's file, in PEFT's layout."""

    a: Stored
    b: Stored
    experts: int
    """That the two matrices hold; 1 where the target is no stack."""


class LoraReader:
    """An adapter, read target by target. Several threads may read."""

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
        options = _options(folder)
        self.rank = int(options["r"])
        self.scale = float(options["lora_alpha"]) / (self.rank**0.5 if options.get("use_rslora") else self.rank)
        self.targets = self._targets()
        self._kept: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        self.norms = {name: self._norm(name) for name in self.targets}
        """||update|| of each target, all experts of a stack together."""

    def update(self, name: str, expert: int | None = None, rows: slice = slice(None)) -> LowRank | None:
        """What is to be added to some rows of a base tensor, or of one expert's matrix.

        None if the adapter leaves the tensor alone.
        """
        if name not in self.targets:
            return None
        a, b = self._factors(name)
        which = expert or 0
        return LowRank(a[which], b[which][:, rows], self.scale)

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a target's update, of one expert where it is a stack."""
        factors = self.targets[name]
        return factors.b.shape[0], factors.a.shape[1]

    def _targets(self) -> dict[str, Factors]:
        """Update by name of the base tensor that it changes."""
        tensors = {tensor.name: tensor for tensor in read_header(self.folder / WEIGHTS)}
        targets: dict[str, Factors] = {}
        for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
            other = name.replace(".lora_A.", ".lora_B.")
            if other not in tensors:
                raise ExportRejected(f"{self.folder}: {name} has no {other}; train or download the adapter again")
            a, b = tensors.pop(name), tensors.pop(other)
            if len(a.shape) != 2 or len(b.shape) != 2:
                raise ExportRejected(f"{self.folder}: {name} is {list(a.shape)}, and only matrices can be merged")
            target = self._target(name, a, b)
            if target in targets:
                raise ExportRejected(f"{self.folder}: {name} is a second update of {target}; train the adapter again")
            targets[target] = self._paired(name, a, b)
        if tensors:
            raise ExportRejected(f"{self.folder}: nothing is known to do with {', '.join(sorted(tensors)[:4])}")
        if not targets:
            raise ExportRejected(f"{self.folder / WEIGHTS}: holds no update; train the adapter again")
        return targets

    def _target(self, name: str, a: Stored, b: Stored) -> str:
        module = _module(name)
        fused = _fused(module)
        return f"{fused}.{self._leaf(a.shape, b.shape)}" if fused else f"{module}.weight"

    def _leaf(self, a: tuple[int, ...], b: tuple[int, ...]) -> str:
        """Which stack an update of experts belongs to: PEFT's names tell an order of wrapping, so shapes decide."""
        if self.experts is None:
            raise ExportRejected(f"{self.folder}: updates experts, and the base is dense; train on this base")
        for leaf in ("gate_up_proj", "down_proj"):
            if (b[0], a[1]) == self.experts.stack(leaf):
                return leaf
        raise ExportRejected(
            f"{self.folder}: an update of {b[0]} x {a[1]} fits no stack of the base's experts; name the base that it "
            f"was trained on"
        )

    def _paired(self, name: str, a: Stored, b: Stored) -> Factors:
        experts = self.experts.experts if self.experts and _fused(_module(name)) else 1
        if (a.shape[0], b.shape[1]) != (experts * self.rank, experts * self.rank):
            raise ExportRejected(
                f"{self.folder}: {name} is {list(a.shape)} and its lora_B {list(b.shape)}, which is not rank "
                f"{self.rank} of {CONFIG} for {experts} matrices; train with one rank for all targets"
            )
        return Factors(a, b, experts)

    def _norm(self, name: str) -> float:
        """||b^T a||^2 = <b b^T, a a^T>: the update itself is never built."""
        a, b = self._read(name)
        for tensor in (a, b):
            low, high = torch.aminmax(tensor)  # NaN reaches both
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ExportRejected(f"{self.folder}: the update of {name} holds NaN or infinity; train again")
            if low == 0 == high:
                raise ExportRejected(f"{self.folder}: the update of {name} is all zero: nothing was learned there")
        squares = (torch.bmm(a, a.mT) * torch.bmm(b, b.mT)).sum(dtype=torch.float64)
        return self.scale * float(squares.clamp_min(0).sqrt())

    def _factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = self._read(name)
                if len(self._kept) > KEPT_TARGETS:
                    self._kept.popitem(last=False)
            return self._kept[name]

    def _read(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 [experts, rank, in] and [experts, rank, out]."""
        factors = self.targets[name]
        a, b = factors.a.read().float(), factors.b.read().float()
        # PEFT has experts slowest in A and fastest in B; turning B as one matrix is three times faster than by axes.
        turned = b.T.contiguous().view(self.rank, factors.experts, -1).transpose(0, 1)
        return a.view(factors.experts, self.rank, -1), turned


def add_update(weight: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """The sum, computed in fp32 and rounded once to the weight's own type, as PEFT's merge in fp32 rounds."""
    return (weight.float() + update).to(weight.dtype)


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")


def _fused(module: str) -> str | None:
    """The experts that a module's update belongs to; PEFT wraps one stack around the other."""
    found = re.fullmatch(r"(.*\.experts)(\.base_layer)?", module)
    return found[1] if found else None


def _options(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise ExportRejected(f"{folder}: no adapter of PEFT, which is {CONFIG} and {WEIGHTS}")
    try:
        options: dict[str, Any] = json.loads(file.read_text())
        kind, _ = options.get("peft_type", "LORA"), (int(options["r"]), float(options["lora_alpha"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ExportRejected(f"{file}: no config of a LoRA adapter; train or download the adapter again") from None
    used = [option for option, value in options.items() if value and option not in UNDERSTOOD]
    used += ["peft_type"] if kind != "LORA" else []
    used += ["bias"] if options.get("bias", "none") != "none" else []
    used += ["init_lora_weights"] if options.get("init_lora_weights", True) not in INITIAL else []
    if used:
        raise ExportRejected(f"{folder}: {', '.join(used)} in {CONFIG} cannot be merged; train plain LoRA")
    return options
