"""The schemes a model can be exported in: what a weight is stored as, and who rounds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Name = Literal["int8_w8a8", "int8_w8a16", "int4_w4a16", "bf16", "gptq_int8", "gptq_int4", "smoothquant_int8"]


@dataclass(frozen=True)
class Scheme:
    """How attention, MLP and experts of the language model are stored; everything else stays in bf16."""

    name: Name
    bits: int | None = None
    """Of a weight, a symmetric integer. None: bf16, nothing is quantised."""

    group: int | None = None
    """Neighbouring inputs of a row that share a scale. None: the row has one."""

    int8_activations: bool = False
    """Whether activations are rounded too, per token at run time, so that products are INT8."""

    method: Literal["rounding", "gptq", "smoothquant+gptq"] = "rounding"
    """Rounded to nearest by our own stream, or calibrated on training rows by llm-compressor."""

    @property
    def calibrated(self) -> bool:
        """Whether llm-compressor writes it."""
        return self.method != "rounding"

    @property
    def rounded(self) -> Scheme:
        """The same storage without calibration."""
        return (
            scheme_of("int4_w4a16" if self.bits == 4 else "int8_w8a8", self.group or 128) if self.calibrated else self
        )


SCHEMES: dict[Name, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8_w8a8", bits=8, int8_activations=True),
        Scheme("int8_w8a16", bits=8, group=128),
        Scheme("int4_w4a16", bits=4, group=128),
        Scheme("bf16"),
        Scheme("gptq_int8", bits=8, int8_activations=True, method="gptq"),
        Scheme("gptq_int4", bits=4, group=128, method="gptq"),
        Scheme("smoothquant_int8", bits=8, int8_activations=True, method="smoothquant+gptq"),
    )
}


def scheme_of(name: Name, group_size: int = 128) -> Scheme:
    """A scheme, its groups of another size; schemes without groups are as they are."""
    scheme = SCHEMES[name]
    return replace(scheme, group=group_size) if scheme.group else scheme
