"""Norm and rotary embedding of attention heads in Triton. `plain` says what they compute, and tests hold them to it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def norm_rotate(
    heads: torch.Tensor, weight: torch.Tensor | None, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """See `plain.norm_rotate`."""
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    tokens, count, size = heads.shape
    _norm_rotate[(tokens,)](
        heads, weight, cos, sin, out, eps, heads.stride(0), heads.stride(1),
        COUNT=count, HEADS=triton.next_power_of_2(count),
        HALF=size // 2, COLUMNS=triton.next_power_of_2(size // 2), num_warps=4,
    )  # fmt: skip
    return out


def norm_rotate_backward(
    gradient: torch.Tensor,
    heads: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """See `plain.norm_rotate_backward`."""
    tokens, count, size = heads.shape
    _norm_rotate_backward[(tokens,)](
        gradient, heads, weight, cos, sin, out, eps,
        gradient.stride(0), gradient.stride(1), heads.stride(0), heads.stride(1), out.stride(0), out.stride(1),
        COUNT=count, HEADS=triton.next_power_of_2(count),
        HALF=size // 2, COLUMNS=triton.next_power_of_2(size // 2), num_warps=4,
    )  # fmt: skip


@triton.jit
def _norm_rotate(
    heads, weight, cos, sin, out, eps, token_stride, head_stride,
    COUNT: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = column < HALF
    there = (head < COUNT) & inside
    place = heads + token * token_stride + head * head_stride + column
    first = tl.load(place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=there, other=0.0).to(tl.float32)
    if weight is not None:
        mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF)
        inverse = tl.rsqrt(mean + eps)[:, None]
        first *= inverse * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        second *= inverse * tl.load(weight + HALF + column, mask=inside, other=0.0).to(tl.float32)
    angle = token * 2 * HALF + column
    cos_first = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    target = out + token * COUNT * 2 * HALF + head * 2 * HALF + column
    tl.store(target, (first * cos_first - second * sin_first).to(out.dtype.element_ty), mask=there)
    tl.store(target + HALF, (second * cos_second + first * sin_second).to(out.dtype.element_ty), mask=there)


@triton.jit
def _norm_rotate_backward(
    gradient, heads, weight, cos, sin, out, eps,
    gradient_token_stride, gradient_head_stride, token_stride, head_stride, out_token_stride, out_head_stride,
    COUNT: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = column < HALF
    there = (head < COUNT) & inside
    angle = token * 2 * HALF + column
    cos_first = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    coming = gradient + token * gradient_token_stride + head * gradient_head_stride + column
    of_first = tl.load(coming, mask=there, other=0.0).to(tl.float32)
    of_second = tl.load(coming + HALF, mask=there, other=0.0).to(tl.float32)
    back_first = of_first * cos_first + of_second * sin_second
    back_second = of_second * cos_second - of_first * sin_first
    if weight is not None:
        back_first *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        back_second *= tl.load(weight + HALF + column, mask=inside, other=0.0).to(tl.float32)
        place = heads + token * token_stride + head * head_stride + column
        first = tl.load(place, mask=there, other=0.0).to(tl.float32)
        second = tl.load(place + HALF, mask=there, other=0.0).to(tl.float32)
        inverse = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)[:, None]
        along = ((tl.sum(back_first * first, 1) + tl.sum(back_second * second, 1)) / (2 * HALF))[:, None]
        cubed = inverse * inverse * inverse * along
        back_first = inverse * back_first - cubed * first
        back_second = inverse * back_second - cubed * second
    target = out + token * out_token_stride + head * out_head_stride + column
    tl.store(target, back_first.to(out.dtype.element_ty), mask=there)
    tl.store(target + HALF, back_second.to(out.dtype.element_ty), mask=there)
