"""How experts lie in a checkpoint, told by shape, and how they will lie in the exported one: a matrix per projection.

Published on the hub: gate_up_proj [experts, hidden, 2 * width], down_proj [experts, width, hidden].
Saved by transformers 5: gate_up_proj [experts, 2 * width, hidden], down_proj [experts, hidden, width].
Exported, for any engine: experts.0.gate_proj.weight [width, hidden], up_proj likewise, down_proj [hidden, width].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ExportRejected
from training.merge import ExpertShape
from training.weights.shards import Spec, Stored

STACK = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<leaf>gate_up_proj|down_proj)")
SINGLE = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class Planned:
    """One exported tensor and where it comes from."""

    output: Spec
    source: Stored
    target: str
    """Name by which the adapter knows it."""

    expert: int | None = None
    """Its place in a fused stack on disk, or in the adapter's."""

    span: tuple[int, int] | None = None
    """First and last row (exclusive) of the expert's matrix in the adapter, and on disk if that is a stack."""

    transposed: bool = False
    """Whether the stack has [in, out] matrices."""

    @property
    def rows(self) -> slice:
        """The span to index with."""
        return slice(*self.span) if self.span else slice(None)

    @property
    def from_stack(self) -> bool:
        """Whether the source holds all experts."""
        return len(self.source.shape) == 3


def expert_shape(config: dict[str, Any]) -> ExpertShape | None:
    """Widths of the experts by a model's config.json; None for a dense model.

    Raises:
        ExportRejected: It tells their number and not their widths, as architectures do that are not known here.
    """
    text = config.get("text_config", config)
    experts = text.get("num_experts") or text.get("num_local_experts")
    if not experts:
        return None
    if missing := [name for name in ("hidden_size", "moe_intermediate_size") if name not in text]:
        raise ExportRejected(
            f"config.json has {experts} experts and no {missing[0]}; this architecture is not supported"
        )
    return ExpertShape(experts, text["hidden_size"], text["moe_intermediate_size"])


def plan(tensors: Sequence[Stored], experts: ExpertShape | None) -> list[Planned]:
    """Every exported tensor, in the order of the sources.

    Raises:
        ExportRejected: A stack has square matrices, or a shape that fits neither layout, or an expert's matrix is not
            what the config makes it.
    """
    return [planned for tensor in tensors for planned in _plan_one(tensor, experts)]


def _plan_one(tensor: Stored, experts: ExpertShape | None) -> Iterator[Planned]:
    stack, single = STACK.fullmatch(tensor.name), SINGLE.fullmatch(tensor.name)
    if stack and experts:
        yield from _unfuse(tensor, stack["experts"], stack["leaf"], experts)
    elif single and experts:
        part, leaf = single["part"], "down_proj" if single["part"] == "down" else "gate_up_proj"
        first, last = _span(part, experts)
        wanted = (last - first, experts.stack(leaf)[1])
        if tensor.shape != wanted or int(single["expert"]) >= experts.experts:
            raise ExportRejected(
                f"{tensor.name} {list(tensor.shape)}: config.json makes it {experts.experts} experts, and this one "
                f"{list(wanted)}; download the model again"
            )
        yield Planned(_same(tensor), tensor, f"{single['experts']}.{leaf}", int(single["expert"]), (first, last))
    else:
        yield Planned(_same(tensor), tensor, tensor.name)


def _unfuse(tensor: Stored, module: str, leaf: str, experts: ExpertShape) -> Iterator[Planned]:
    transposed = _is_transposed(tensor, leaf, experts)
    for expert in range(experts.experts):
        for part in ("gate", "up") if leaf == "gate_up_proj" else ("down",):
            first, last = _span(part, experts)
            shape = (last - first, experts.stack(leaf)[1])
            output = Spec(f"{module}.{expert}.{part}_proj.weight", tensor.dtype, shape)
            yield Planned(output, tensor, tensor.name, expert, (first, last), transposed)


def _is_transposed(tensor: Stored, leaf: str, experts: ExpertShape) -> bool:
    out, width = experts.stack(leaf)
    if out == width:
        raise ExportRejected(
            f"{tensor.name} {list(tensor.shape)}: square experts, so their layout cannot be told by shape; "
            f"export a checkpoint with one matrix per expert instead"
        )
    if tensor.shape == (experts.experts, width, out):
        return True
    if tensor.shape == (experts.experts, out, width):
        return False
    raise ExportRejected(
        f"{tensor.name} {list(tensor.shape)}: neither [{experts.experts}, {width}, {out}] nor "
        f"[{experts.experts}, {out}, {width}], which config.json would make it"
    )


def _span(part: str, experts: ExpertShape) -> tuple[int, int]:
    """Gate and up are the halves of one matrix."""
    width = experts.width
    return {"gate": (0, width), "up": (width, 2 * width), "down": (0, experts.hidden)}[part]


def _same(tensor: Stored) -> Spec:
    return Spec(tensor.name, tensor.dtype, tensor.shape)
