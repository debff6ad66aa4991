"""The scales of an NF4 tensor: blocks of 64 weights share one, and those are quantised again in blocks of 256."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 64
"""Weights that share a scale."""

NESTED_BLOCK = 256
"""Scales that share a scale of their own."""


@dataclass(frozen=True)
class Blocks:
    """Double quantisation of QLoRA (Dettmers et al. 2023, section 3), as bitsandbytes stores it."""

    code: torch.Tensor
    """[16], fp32: the NF4 values."""

    scales: torch.Tensor
    """[weights / 64], uint8."""

    nested_code: torch.Tensor
    """[256], fp32: what a byte of `scales` stands for."""

    nested_scales: torch.Tensor
    """[scales / 256], fp32."""

    offset: torch.Tensor
    """Scalar, fp32: added to every scale."""
