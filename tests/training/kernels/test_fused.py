"""Every Triton kernel gives what the plain one gives, on random shapes, into views as the experts use them."""

from __future__ import annotations

import pytest
import torch

from training.kernels import plain
from training.kernels.blocks import Blocks
from training.kernels.choose import kernels
from training.layers.nf4 import PackedStack

pytestmark = pytest.mark.gpu

BF16 = 1e-2


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _poisoned(*shape: int) -> torch.Tensor:
    return torch.full(shape, torch.nan, device="cuda", dtype=torch.bfloat16)


def _same(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    difference = (ours.float() - wanted.float()).norm() / wanted.float().norm()
    assert float(difference) < BF16


@pytest.mark.parametrize("shape", [(128, 1536, 2048), (128, 2048, 768), (3, 40, 64), (5, 24, 96)])
@pytest.mark.parametrize("extra", [0, 16])
def test_unpack_is_exact_and_writes_nothing_else(shape: tuple[int, int, int], extra: int) -> None:
    stack = PackedStack(_random(*shape))
    blocks = Blocks(stack.code, stack.absmax, stack.nested_code, stack.nested_absmax, stack.offset)
    experts, rows, width = shape
    ours, wanted = (_poisoned(experts, rows + extra, width + extra) for _ in range(2))
    kernels(ours.device).unpack(stack.packed, blocks, ours[:, :rows, :width])
    plain.unpack(stack.packed, blocks, wanted[:, :rows, :width])
    different = (ours != wanted)[:, :rows, :width].nonzero()
    assert len(different) == 0, (len(different), different[:3], ours[tuple(different[0])], wanted[tuple(different[0])])
    assert ours[:, rows:].isnan().all()
    assert ours[:, :, width:].isnan().all()


@pytest.mark.parametrize(("sizes", "width"), [((1, 0), 96), ((100, 0, 233), 768), ((64, 128, 5, 1000), 1024)])
@pytest.mark.parametrize("narrow", [0, 16, 48])
def test_gathered_and_gated_rows_with_their_extension(sizes: tuple[int, ...], width: int, narrow: int) -> None:
    rows, experts = sum(sizes), len(sizes)
    ends = torch.tensor(sizes, device="cuda").cumsum(0).to(torch.int32)
    tokens = torch.randint(0, 50, (rows,), device="cuda")
    source, gate_up, gradient = _random(50, width), _random(rows, 2 * width), _random(rows, width)
    weights, scale = _random(rows).abs(), width**-0.5
    beside = scale * _random(experts, width, narrow + 8)[:, :, :narrow] if narrow else None
    below = scale * _random(experts, narrow + 8, 2 * width)[:, :narrow].mT if narrow else None
    results = []
    for offered in (kernels(source.device), plain):
        gathered, gated, again = (_poisoned(rows, width + narrow) for _ in range(3))
        of_gate_up = _poisoned(rows, 2 * width + narrow)
        offered.gather_extend(source, tokens, ends, beside, gathered)
        offered.gate_extend(gate_up, ends, beside, gated)
        of_weights = offered.gate_backward(gate_up, gradient, weights, ends, (beside, below), again, of_gate_up)
        results.append((gathered, gated, again, of_gate_up, of_weights))
    for ours, wanted in zip(*results, strict=True):
        _same(ours, wanted)


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (777, 2048), (100, 2560)])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_of_gathered_rows(tokens: int, width: int, weighted: bool) -> None:
    rows = _random(tokens * 8, width)
    places = torch.randperm(tokens * 8, device="cuda").view(tokens, 8)
    weights = _random(tokens, 8).abs() if weighted else None
    _same(kernels(rows.device).gather_sum(rows, places, weights), plain.gather_sum(rows, places, weights))


@pytest.mark.parametrize(("tokens", "heads", "size"), [(1, 4, 32), (513, 32, 128), (64, 3, 72)])
@pytest.mark.parametrize("normed", [True, False])
def test_norm_with_rotation_and_its_way_back(tokens: int, heads: int, size: int, normed: bool) -> None:
    values, gradient = _random(tokens, 2 * heads, size)[:, :heads], _random(tokens, heads, size)
    cos, sin, weight = _random(tokens, size), _random(tokens, size), _random(size) if normed else None
    offered = kernels(values.device)
    _same(offered.norm_rotate(values, weight, 1e-6, cos, sin), plain.norm_rotate(values, weight, 1e-6, cos, sin))
    ours, wanted = (_poisoned(tokens, 2 * heads, size) for _ in range(2))
    offered.norm_rotate_backward(gradient, values, weight, 1e-6, cos, sin, ours[:, :heads])
    plain.norm_rotate_backward(gradient, values, weight, 1e-6, cos, sin, wanted[:, :heads])
    _same(ours[:, :heads], wanted[:, :heads])
    assert ours[:, heads:].isnan().all()
