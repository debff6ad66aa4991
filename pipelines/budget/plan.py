"""What a config needs of its hardware, whether that fits, and the largest settings that would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.budget.base import Base, read_base
from pipelines.budget.demand import GIB, Demand
from pipelines.budget.exporting import HostNeed, group_objection, host_need
from pipelines.budget.largest import largest_rank, largest_tokens, ways_to_serve, ways_to_train
from pipelines.budget.serving import kv_tokens, serving_demand
from pipelines.budget.training import largest_micro_batch, training_demand
from pipelines.config import Config
from pipelines.errors import BadInput, MachineUnfit
from pipelines.schemes import SCHEMES


@dataclass(frozen=True)
class Side:
    """One process, and what would change its demand."""

    demand: Demand
    room: tuple[str, ...]
    """The largest settings that fit, each with everything else as it is."""

    lower: tuple[str, ...]
    """Where it does not fit: what to change; each alone is enough."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run starts on the device, one after the other."""

    base: Base
    sides: tuple[Side, ...]
    host: HostNeed
    """Of the export. Whether the host has it is not part of the verdict: the plan may be for another machine."""

    @property
    def fits(self) -> bool:
        """Whether everything does, if only just."""
        return all(side.demand.verdict != "does not fit" for side in self.sides)


def make_plan(config: Config, base: Base) -> Plan:
    """Plan a whole run: training, serving of what it exports, and what the evaluation serves beside that.

    Raises:
        BadInput: The base has rows that cannot be cut into the scheme's groups.
    """
    if reason := group_objection(base.shape, config.export.stored):
        raise BadInput(f"{config.model.source}: {reason}")
    sides = [training_side(config, base), serving_side(config, base)]
    if config.export.keep_merged and config.export.scheme != "bf16":
        sides.append(merged_side(config, base))
    return Plan(base, tuple(sides), host_need(config, base))


def require_training_fit(config: Config, folder: Path) -> None:
    """Refuse to load a base that cannot be trained here.

    Args:
        config: Of the run.
        folder: The base on disk.

    Raises:
        MachineUnfit: Says how much is needed, how much there is, and what to lower.
    """
    side = training_side(config, read_base(folder))
    if side.demand.verdict == "does not fit":
        raise MachineUnfit(refusal(config, side))


def refusal(config: Config, side: Side) -> str:
    """A demand that is not met, in a sentence."""
    need, limit = side.demand.nbytes / GIB, side.demand.limit_bytes / GIB
    return (
        f"{side.demand.name} needs about {need:.1f} GiB, and {config.hardware.name} allows {limit:.1f} GiB: "
        f"{'; or '.join(side.lower)}"
    )


def training_side(config: Config, base: Base) -> Side:
    """Fine-tuning, with the largest micro-batch and the largest rank that fit."""
    demand = training_demand(config, base)
    if demand.verdict == "does not fit":
        return Side(demand, (), ways_to_train(config, base))
    tokens, rank = largest_tokens(config, base), largest_rank(config, base)
    whole = ", a whole step" if tokens == largest_micro_batch(config) else ""
    room = (
        f"train.tokens_per_batch up to {tokens:,}{whole}" if tokens else "",
        f"lora.rank up to {rank}" if rank else "",
    )
    return Side(demand, tuple(filter(None, room)), ())


def serving_side(config: Config, base: Base) -> Side:
    """Serving of the exported model, or of the base that it is compared with, and what the KV cache will hold."""
    scheme = config.export.stored
    demand = serving_demand(config, base, scheme, name=f"serving and evaluation, candidate or base, {scheme.name}")
    if demand.verdict == "does not fit":
        return Side(demand, (), ways_to_serve(config, base, demand))
    tokens, length = kv_tokens(config, base, demand), config.serving.max_model_len
    room = (
        f"{tokens:,} tokens in the KV cache: {tokens / length:.1f} sequences of {length:,} at once",
        f"serving.max_model_len up to {min(tokens, base.shape.longest):,}",
    )
    return Side(demand, room, ())


def merged_side(config: Config, base: Base) -> Side:
    """The merged bf16 model, which `evaluate` serves where it is kept, to tell what quantisation costs."""
    demand = serving_demand(config, base, SCHEMES["bf16"], name="evaluation of the merged model, bf16")
    lower = ("set export.keep_merged to false",) if demand.verdict == "does not fit" else ()
    return Side(demand, (), lower)
