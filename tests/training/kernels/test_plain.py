"""The kernels in PyTorch are what autograd makes of their definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from training.kernels import plain


def _relative(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((ours - wanted).norm() / wanted.norm())


def test_the_way_back_through_swiglu_and_the_weights() -> None:
    torch.manual_seed(0)
    gate_up, weights = torch.randn(9, 24, requires_grad=True), torch.rand(9, requires_grad=True)
    down, coming = torch.randn(5, 12), torch.randn(9, 5)
    gate, up = gate_up.chunk(2, -1)
    gated = functional.silu(gate) * up
    ((gated @ down.T) * weights[:, None] * coming).sum().backward()
    of_gate_up, again, ends = torch.empty(9, 24), torch.empty(9, 12), torch.tensor([9], dtype=torch.int32)
    inputs = (gate_up.detach(), coming @ down, weights.detach())  # what comes back as if every weight were 1
    of_weights = plain.gate_backward(*inputs, ends, (None, None), again, of_gate_up)
    assert gate_up.grad is not None
    assert weights.grad is not None
    torch.testing.assert_close(again, gated.detach())
    assert _relative(of_gate_up, gate_up.grad) < 1e-5
    assert _relative(of_weights, weights.grad) < 1e-5


@pytest.mark.parametrize("normed", [True, False])
def test_the_way_back_through_norm_and_rotation(normed: bool) -> None:
    torch.manual_seed(0)
    heads, weight = torch.randn(7, 3, 16, requires_grad=True), torch.rand(16) if normed else None
    cos, sin, coming = torch.randn(7, 16), torch.randn(7, 16), torch.randn(7, 3, 16)
    out = plain.norm_rotate(heads, weight, 1e-6, cos, sin)
    (wanted,) = torch.autograd.grad(out, heads, coming)
    ours = torch.empty(7, 3, 16)
    plain.norm_rotate_backward(coming, heads.detach(), weight, 1e-6, cos, sin, ours)
    assert _relative(ours, wanted) < 1e-5
