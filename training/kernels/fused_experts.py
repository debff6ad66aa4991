"""The experts' kernels in Triton: one pass over memory each. `plain` says what they compute; tests hold them to it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from training.kernels import plain
from training.kernels.blocks import BLOCK, NESTED_BLOCK, Blocks


def unpack(packed: torch.Tensor, blocks: Blocks, out: torch.Tensor) -> None:
    """See `plain.unpack`."""
    _, rows, width = out.shape
    if width % BLOCK:  # a block would cross the end of a row; no real model has such experts
        plain.unpack(packed, blocks, out)
        return
    per_program = 64
    grid = (triton.cdiv(out.numel() // BLOCK, per_program),)
    _unpack[grid](
        packed, blocks.code, blocks.scales, blocks.nested_code, blocks.nested_scales, blocks.offset, out,
        out.numel() // BLOCK, out.stride(0), out.stride(1),
        ROWS=rows, WIDTH=width, BLOCK=BLOCK, NESTED=NESTED_BLOCK, BLOCKS=per_program, num_warps=4,
        enable_fp_fusion=False,  # as bitsandbytes rounds
    )  # fmt: skip


def gather_extend(
    source: torch.Tensor, tokens: torch.Tensor, ends: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor
) -> None:
    """See `plain.gather_extend`."""
    width = source.shape[1]
    _gather_extend[_tiles(out, ends)](
        source, tokens, ends, factor, out, source.stride(0), *_strides(factor), out.stride(0),
        WIDTH=width, **_shape(ends, out.shape[1] - width),
    )  # fmt: skip


def gate_extend(gate_up: torch.Tensor, ends: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor) -> None:
    """See `plain.gate_extend`."""
    width = gate_up.shape[1] // 2
    _gate_extend[_tiles(out, ends)](
        gate_up, ends, factor, out, gate_up.stride(0), *_strides(factor), out.stride(0),
        WIDTH=width, **_shape(ends, out.shape[1] - width),
    )  # fmt: skip


def gate_backward(
    gate_up: torch.Tensor,
    gradient: torch.Tensor,
    weights: torch.Tensor,
    ends: torch.Tensor,
    factors: tuple[torch.Tensor | None, torch.Tensor | None],
    gated: torch.Tensor,
    of_gate_up: torch.Tensor,
) -> torch.Tensor:
    """See `plain.gate_backward`."""
    width = gate_up.shape[1] // 2
    of_weights = gate_up.new_empty(len(gate_up), dtype=torch.float32)
    of_gated, of_gradient = factors
    _gate_backward[_tiles(gated, ends)](
        gate_up, gradient, weights, ends, of_gated, of_gradient, gated, of_gate_up, of_weights,
        gate_up.stride(0), gradient.stride(0), *_strides(of_gated), *_strides(of_gradient),
        gated.stride(0), of_gate_up.stride(0), WIDTH=width, **_shape(ends, gated.shape[1] - width),
    )  # fmt: skip
    return of_weights


ROWS_PER_TILE = 64
"""Of one expert; the last tile of each may have fewer."""


def _tiles(rows: torch.Tensor, ends: torch.Tensor) -> tuple[int]:
    """As many programs as there can be tiles; how many there are is known to the GPU only."""
    return (triton.cdiv(len(rows), ROWS_PER_TILE) + len(ends),)


def _strides(factor: torch.Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if factor is None else (factor.stride(0), factor.stride(1), factor.stride(2))


def _shape(ends: torch.Tensor, narrow: int) -> dict[str, int]:
    """Triton's ranges have powers of two."""
    return {
        "EXPERTS": len(ends),
        "ALL": triton.next_power_of_2(len(ends)),
        "NARROW": narrow,
        "COLUMNS": max(16, triton.next_power_of_2(narrow)),
        "ROWS": ROWS_PER_TILE,
        "STEP": 64,
        "num_warps": 4,
    }


def gather_sum(rows: torch.Tensor, places: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """See `plain.gather_sum`."""
    tokens, per_token = places.shape
    width = rows.shape[1]
    out = rows.new_empty(tokens, width)
    columns = min(1024, triton.next_power_of_2(width))
    _gather_sum[(tokens, triton.cdiv(width, columns))](
        rows, places, places if weights is None else weights, out, rows.stride(0), width,
        PER_TOKEN=per_token, WEIGHTED=weights is not None, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _unpack(
    packed, code, scales, nested_code, nested_scales, offset, out,
    count, expert_stride, row_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, NESTED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    there = block < count
    quantized = tl.load(scales + block, mask=there, other=0).to(tl.int32)
    nested = tl.load(nested_scales + block // NESTED, mask=there, other=0.0)
    scale = tl.load(nested_code + quantized) * nested + tl.load(offset)
    half = tl.arange(0, BLOCK // 2)
    pairs = tl.load(packed + block[:, None] * (BLOCK // 2) + half[None, :], mask=there[:, None], other=0).to(tl.int32)
    first = tl.load(code + (pairs >> 4)) * scale[:, None]
    second = tl.load(code + (pairs & 15)) * scale[:, None]
    values = tl.reshape(tl.join(first, second), (BLOCKS, BLOCK))
    row = block // (WIDTH // BLOCK)
    column = (block % (WIDTH // BLOCK)) * BLOCK
    begin = (row // ROWS).to(tl.int64) * expert_stride + (row % ROWS) * row_stride + column
    places = out + begin[:, None] + tl.arange(0, BLOCK)[None, :]
    tl.store(places, values.to(out.dtype.element_ty), mask=there[:, None])


@triton.jit
def _tile(ends, EXPERTS: tl.constexpr, ALL: tl.constexpr, ROWS: tl.constexpr):
    """The expert of this program, its first row, and where the expert's rows end; none for programs too many."""
    program = tl.program_id(0)
    expert = tl.arange(0, ALL)
    end = tl.load(ends + expert, mask=expert < EXPERTS, other=0)
    begin = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < EXPERTS), other=0)
    tiles = (tl.maximum(end - begin, 0) + ROWS - 1) // ROWS
    until = tl.cumsum(tiles, 0)
    mine = (program < until) & (program >= until - tiles)
    first = tl.sum(tl.where(mine, begin + (program - until + tiles) * ROWS, 0))
    return tl.sum(tl.where(mine, expert, 0)).to(tl.int64), first, tl.sum(tl.where(mine, end, 0))


@triton.jit
def _gather_extend(
    source, tokens, ends, factor, out,
    source_stride, factor_expert, factor_row, factor_column, out_stride,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, ALL: tl.constexpr,
    NARROW: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert, first, end = _tile(ends, EXPERTS, ALL, ROWS)
    rows = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    there = rows < end
    token = tl.load(tokens + rows, mask=there, other=0)
    narrow = tl.arange(0, COLUMNS)[None, :]
    made = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, STEP):
        column = begin + tl.arange(0, STEP)[None, :]
        values = tl.load(source + token * source_stride + column, mask=there & (column < WIDTH), other=0.0)
        tl.store(out + rows * out_stride + column, values, mask=there & (column < WIDTH))
        if factor is not None:
            row = begin + tl.arange(0, STEP)[:, None]
            place = factor + expert * factor_expert + row * factor_row + narrow * factor_column
            made = tl.dot(values, tl.load(place, mask=(row < WIDTH) & (narrow < NARROW), other=0.0), made)
    if factor is not None:
        place = out + rows * out_stride + WIDTH + narrow
        tl.store(place, made.to(out.dtype.element_ty), mask=there & (narrow < NARROW))


@triton.jit
def _gate_extend(
    gate_up, ends, factor, out,
    gate_up_stride, factor_expert, factor_row, factor_column, out_stride,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, ALL: tl.constexpr,
    NARROW: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert, first, end = _tile(ends, EXPERTS, ALL, ROWS)
    rows = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    narrow = tl.arange(0, COLUMNS)[None, :]
    made = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, STEP):
        column = begin + tl.arange(0, STEP)[None, :]
        there = (rows < end) & (column < WIDTH)
        place = gate_up + rows * gate_up_stride + column
        gate = tl.load(place, mask=there, other=0.0).to(tl.float32)
        up = tl.load(place + WIDTH, mask=there, other=0.0).to(tl.float32)
        gated = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
        tl.store(out + rows * out_stride + column, gated, mask=there)
        if factor is not None:
            row = begin + tl.arange(0, STEP)[:, None]
            place = factor + expert * factor_expert + row * factor_row + narrow * factor_column
            made = tl.dot(gated, tl.load(place, mask=(row < WIDTH) & (narrow < NARROW), other=0.0), made)
    if factor is not None:
        place = out + rows * out_stride + WIDTH + narrow
        tl.store(place, made.to(out.dtype.element_ty), mask=(rows < end) & (narrow < NARROW))


@triton.jit
def _gate_backward(
    gate_up, gradient, weights, ends, of_gated, of_gradient, gated, of_gate_up, of_weights,
    gate_up_stride, gradient_stride, gated_expert, gated_row, gated_column,
    gradient_expert, gradient_row, gradient_column, gated_stride, of_gate_up_stride,
    WIDTH: tl.constexpr, EXPERTS: tl.constexpr, ALL: tl.constexpr,
    NARROW: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    expert, first, end = _tile(ends, EXPERTS, ALL, ROWS)
    rows = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    weight = tl.load(weights + rows, mask=rows < end, other=0.0).to(tl.float32)
    narrow = tl.arange(0, COLUMNS)[None, :]
    of_weight = tl.zeros((ROWS,), tl.float32)
    made = tl.zeros((ROWS, COLUMNS), tl.float32)
    made_of_gradient = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, WIDTH, STEP):
        column = begin + tl.arange(0, STEP)[None, :]
        there = (rows < end) & (column < WIDTH)
        place = gate_up + rows * gate_up_stride + column
        gate = tl.load(place, mask=there, other=0.0).to(tl.float32)
        up = tl.load(place + WIDTH, mask=there, other=0.0).to(tl.float32)
        coming = tl.load(gradient + rows * gradient_stride + column, mask=there, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        result = silu * up
        of_weight += tl.sum(result * coming, 1)
        weighted = coming * weight
        again = result.to(gated.dtype.element_ty)
        of_gate = (weighted * up * sigmoid * (1 + gate * (1 - sigmoid))).to(of_gate_up.dtype.element_ty)
        of_up = (weighted * silu).to(of_gate_up.dtype.element_ty)
        tl.store(gated + rows * gated_stride + column, again, mask=there)
        target = of_gate_up + rows * of_gate_up_stride + column
        tl.store(target, of_gate, mask=there)
        tl.store(target + WIDTH, of_up, mask=there)
        row = begin + tl.arange(0, STEP)[:, None]
        inside = (row < WIDTH) & (narrow < NARROW)
        if of_gated is not None:
            place = of_gated + expert * gated_expert + row * gated_row + narrow * gated_column
            made = tl.dot(again, tl.load(place, mask=inside, other=0.0), made)
        if of_gradient is not None:
            place = of_gradient + expert * gradient_expert + row * gradient_row + narrow * gradient_column
            made_of_gradient = tl.dot(of_gate, tl.load(place, mask=inside, other=0.0), made_of_gradient)
            place += WIDTH * gradient_row
            made_of_gradient = tl.dot(of_up, tl.load(place, mask=inside, other=0.0), made_of_gradient)
    row_of_weight = first + tl.arange(0, ROWS)
    tl.store(of_weights + row_of_weight, of_weight, mask=row_of_weight < end)
    if of_gated is not None:
        place = gated + rows * gated_stride + WIDTH + narrow
        tl.store(place, made.to(gated.dtype.element_ty), mask=(rows < end) & (narrow < NARROW))
    if of_gradient is not None:
        place = of_gate_up + rows * of_gate_up_stride + 2 * WIDTH + narrow
        tl.store(place, made_of_gradient.to(of_gate_up.dtype.element_ty), mask=(rows < end) & (narrow < NARROW))


@triton.jit
def _gather_sum(
    rows, places, weights, out, row_stride, width,
    PER_TOKEN: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for i in tl.static_range(PER_TOKEN):
        place = tl.load(places + token * PER_TOKEN + i).to(tl.int64)
        row = tl.load(rows + place * row_stride + column, mask=there, other=0.0).to(tl.float32)
        if WEIGHTED:
            row = row * tl.load(weights + token * PER_TOKEN + i).to(tl.float32)
        total += row
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=there)
