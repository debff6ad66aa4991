"""The kernels in PyTorch's own operations: the path of a CPU, and what the fused ones are tested against."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from torch.nn import functional

from training.kernels.blocks import BLOCK, NESTED_BLOCK, Blocks
from training.layers.grouped import grouped_product


def unpack(packed: torch.Tensor, blocks: Blocks, out: torch.Tensor) -> None:
    """Write an NF4 tensor out in full.

    Args:
        packed: [weights / 2], uint8, the first of each pair in the high half.
        blocks: Its scales.
        out: [experts, out, in] of the compute type, rows contiguous: gets the values.
    """
    nested = bnb.QuantState(
        absmax=blocks.nested_scales, code=blocks.nested_code, blocksize=NESTED_BLOCK, dtype=torch.float32
    )
    state = bnb.QuantState(
        absmax=blocks.scales, shape=(out.numel(),), blocksize=BLOCK, quant_type="nf4",
        dtype=out.dtype, offset=blocks.offset, state2=nested,
    )  # fmt: skip
    # As one long row: bitsandbytes 0.50 on a CPU unpacks rows that are no multiple of a block with wrong scales.
    out.copy_(bnb.dequantize_4bit(packed.view(-1, 1), state).view(out.shape))


def gather_extend(
    source: torch.Tensor, tokens: torch.Tensor, ends: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Gather the rows of each expert, and what a narrow matrix of the expert makes of them.

    Args:
        source: [tokens, width].
        tokens: [rows], int64: which token each row is, rows sorted by expert.
        ends: [experts], int32: where each expert's rows end.
        factor: [experts, width, narrow]; None for the rows alone.
        out: [rows, width + narrow]: gets both, side by side.
    """
    width = source.shape[1]
    torch.index_select(source, 0, tokens, out=out[:, :width])
    if factor is not None:
        out[:, width:] = grouped_product(out[:, :width], factor, ends)


def gate_extend(gate_up: torch.Tensor, ends: torch.Tensor, factor: torch.Tensor | None, out: torch.Tensor) -> None:
    """SwiGLU, `silu(gate) * up`, and what a narrow matrix of the expert makes of it.

    Args:
        gate_up: [rows, 2 * width].
        ends: [experts], int32: where each expert's rows end.
        factor: [experts, width, narrow]; None for SwiGLU alone.
        out: [rows, width + narrow]: gets both, side by side.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    width = up.shape[-1]
    torch.mul(functional.silu(gate), up, out=out[:, :width])
    if factor is not None:
        out[:, width:] = grouped_product(out[:, :width], factor, ends)


def gate_backward(
    gate_up: torch.Tensor,
    gradient: torch.Tensor,
    weights: torch.Tensor,
    ends: torch.Tensor,
    factors: tuple[torch.Tensor | None, torch.Tensor | None],
    gated: torch.Tensor,
    of_gate_up: torch.Tensor,
) -> torch.Tensor:
    """The way back through SwiGLU and the routing weights.

    A row counts `weight` times in the sum of its token, so what comes back to its experts is `weight * gradient`, and
    what comes back to the weight is the product of the row's output with the gradient: that product is the same before
    and after the down projection, so the down projection need not be computed again.

    Args:
        gate_up: [rows, 2 * width].
        gradient: [rows, width], of SwiGLU's result, of the rows as if their weight were 1.
        weights: [rows].
        ends: [experts], int32: where each expert's rows end.
        factors: [experts, width, narrow] for SwiGLU's result, and [experts, 2 * width, narrow] for the gradient.
        gated: [rows, width + narrow]: gets SwiGLU's result again, extended.
        of_gate_up: [rows, 2 * width + narrow]: gets the gradient of `gate_up`, extended.

    Returns:
        The gradient of the weights, [rows], fp32.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    gradient, width = gradient.float(), up.shape[-1]
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    weighted = gradient * weights.float().unsqueeze(-1)
    gated[:, :width] = result = silu * up
    of_gate_up[:, :width] = weighted * up * sigmoid * (1 + gate * (1 - sigmoid))
    of_gate_up[:, width : 2 * width] = weighted * silu
    for factor, rows, columns in zip(factors, (gated, of_gate_up), (width, 2 * width), strict=True):
        if factor is not None:
            rows[:, columns:] = grouped_product(rows[:, :columns], factor, ends)
    return (result * gradient).sum(-1)


def gather_sum(rows: torch.Tensor, places: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Add up the rows of each token, always in the same order.

    Args:
        rows: [rows, width].
        places: [tokens, rows per token]: which rows are a token's.
        weights: [tokens, rows per token]: how much of each; None for all of it.

    Returns:
        [tokens, width], summed in fp32.
    """
    chosen = rows[places].float()
    if weights is not None:
        chosen = chosen * weights.float().unsqueeze(-1)
    return chosen.sum(1).to(rows.dtype)


def norm_rotate(
    heads: torch.Tensor, weight: torch.Tensor | None, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """RMSNorm of each head, then the rotary embedding.

    Args:
        heads: [tokens, heads, size].
        weight: [size], of the norm; None for no norm.
        eps: Added to the mean square.
        cos: [tokens, size], of the angles.
        sin: Likewise.

    Returns:
        Contiguous, like `heads`.
    """
    normed = heads.float()
    if weight is not None:
        normed = functional.rms_norm(normed, heads.shape[-1:], weight.float(), eps)
    return _rotate(normed, cos.float(), sin.float()).to(heads.dtype)


def norm_rotate_backward(
    gradient: torch.Tensor,
    heads: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """The gradient of `heads` for the gradient of what `norm_rotate` made of them; the weight is frozen.

    Args:
        gradient: [tokens, heads, size], as `heads` and `out`, which gets the result; see `norm_rotate` for the rest.
    """
    back = _rotate_back(gradient.float(), cos.float(), sin.float())
    if weight is None:
        out.copy_(back)
        return
    scaled, values = back * weight.float(), heads.float()
    inverse = (values.square().mean(-1, keepdim=True) + eps).rsqrt()
    along = (scaled * values).mean(-1, keepdim=True)
    out.copy_(inverse * scaled - inverse.pow(3) * along * values)


def _rotate(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = values.chunk(2, dim=-1)
    return values * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


def _rotate_back(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = (gradient * sin.unsqueeze(1)).chunk(2, dim=-1)
    return gradient * cos.unsqueeze(1) + torch.cat((second, -first), dim=-1)
