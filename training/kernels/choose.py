"""Which kernels a device has."""

from __future__ import annotations

from typing import Protocol

import torch

from training.kernels import plain
from training.kernels.blocks import Blocks


class Kernels(Protocol):
    """What `plain` and `fused` both offer; `plain` says what each one computes."""

    def unpack(self, packed: torch.Tensor, blocks: Blocks, out: torch.Tensor) -> None:
        """See `plain.unpack`."""

    def gather_extend(
        self,
        source: torch.Tensor,
        tokens: torch.Tensor,
        ends: torch.Tensor,
        factor: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """See `plain.gather_extend`."""

    def gate_extend(
        self, gate_up: torch.Tensor, ends: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """See `plain.gate_extend`."""

    def gate_backward(
        self,
        gate_up: torch.Tensor,
        gradient: torch.Tensor,
        weights: torch.Tensor,
        ends: torch.Tensor,
        factors: tuple[torch.Tensor | None, torch.Tensor | None],
        gated: torch.Tensor,
        of_gate_up: torch.Tensor,
    ) -> torch.Tensor:
        """See `plain.gate_backward`."""

    def gather_sum(self, rows: torch.Tensor, places: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """See `plain.gather_sum`."""

    def norm_rotate(
        self, heads: torch.Tensor, weight: torch.Tensor | None, eps: float, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """See `plain.norm_rotate`."""

    def norm_rotate_backward(
        self,
        gradient: torch.Tensor,
        heads: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """See `plain.norm_rotate_backward`."""


def kernels(device: torch.device) -> Kernels:
    """Triton's on a GPU, PyTorch's own operations elsewhere: the same numbers within rounding."""
    if device.type == "cuda":
        from training.kernels import fused  # Triton comes with CUDA builds of PyTorch only

        return fused
    return plain
