"""A hardware profile, `configs/hardware/NAME.yaml`, and what a card of its compute capability cannot do."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.schemes import Scheme
from pipelines.section import Section

BF16_FROM = (8, 0)
"""Ampere: the first to compute in bf16, which vLLM serves in and the trainer uses by default."""

INT8_FROM, INT8_BELOW = (7, 5), (10, 0)
"""Products of INT8. vLLM's documentation: "INT8 is not supported on compute capability >= 10.0" (Blackwell); it has no
kernels for it."""


class Hardware(Section):
    """What one training or serving process may use; a file below `configs/hardware`."""

    name: str
    """Printed in plans, reports and errors."""

    device: Literal["cpu", "cuda"]
    """Where tensors live."""

    memory_gib: float = Field(gt=0)
    """Memory of the device that may be used."""

    card_gib: float | None = Field(None, gt=0)
    """What CUDA reports as the card's memory, where a profile allows less of it than all. None: the same."""

    capability: tuple[int, int] | None = None
    """Compute capability of the card, such as [8, 9]; decides what it can compute. None on a CPU."""

    gpus: int = Field(1, ge=1)
    """Devices that train together, each with a copy of the model; on a CPU, processes."""

    @model_validator(mode="after")
    def _within_the_card(self) -> Self:
        if self.card_gib is not None and self.card_gib < self.memory_gib:
            raise ValueError(f"memory_gib {self.memory_gib} exceeds card_gib {self.card_gib}")
        return self

    @property
    def share(self) -> float:
        """Of the card's memory that may be used, 0 to 1."""
        return self.memory_gib / (self.card_gib or self.memory_gib)


def objections(hardware: Hardware, scheme: Scheme) -> list[str]:
    """Why this hardware cannot do what is asked of it; empty if it can.

    Args:
        hardware: The profile.
        scheme: That is to be served.
    """
    if hardware.device == "cpu":
        return _cpu_objections(hardware.name, scheme)
    if hardware.capability is None:
        return [f"hardware {hardware.name} names no capability, which decides what it can do; add such as [8, 9]"]
    return card_objections(hardware.name, hardware.capability, scheme)


def card_objections(name: str, capability: tuple[int, int], scheme: Scheme) -> list[str]:
    """The same for a card.

    Args:
        name: Of the card, for the reasons.
        capability: Its compute capability.
        scheme: That is to be served.
    """
    seen = f"{name} has compute capability {capability[0]}.{capability[1]}"
    reasons = []
    # Weight-only integers (Marlin) are multiplied in bf16 too, so that they need nothing beyond it.
    if capability < BF16_FROM:
        reasons.append(f"{seen}, and bf16, which models are trained and served in, needs 8.0 (Ampere) or newer")
    if scheme.int8_activations and not INT8_FROM <= capability < INT8_BELOW:
        reasons.append(
            f"{seen}, and vLLM multiplies INT8 from 7.5 (Turing) to below 10.0 (Blackwell): no kernels for "
            f"{scheme.name}; set export.scheme to int8_w8a16, int4_w4a16 or bf16, or serve on an Ampere, Ada or Hopper "
            f"card"
        )
    return reasons


def _cpu_objections(name: str, scheme: Scheme) -> list[str]:
    """On a CPU vLLM 0.32 has kernels for INT8 with INT8 activations and for INT4, and none for INT8 weights alone."""
    if scheme.bits == 8 and not scheme.int8_activations:
        return [
            f"{name} is a CPU, for which vLLM has no kernels for {scheme.name}; set export.scheme to int8_w8a8, "
            f"int4_w4a16 or bf16, or serve on a card"
        ]
    return []
