"""Tensors in NF4 with double quantisation, and how they are written out in full where a product needs them."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from training.kernels.blocks import BLOCK, NESTED_BLOCK, Blocks
from training.kernels.choose import kernels


class PackedStack(nn.Module):
    """One stack of expert matrices in NF4; everything it needs is a buffer."""

    packed: torch.Tensor
    code: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor
    nested_absmax: torch.Tensor
    nested_code: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        """Pack a stack [experts, out, in] of bf16, fp16 or fp32."""
        super().__init__()
        self.shape = weight.shape
        # As one long row: bitsandbytes 0.50 on a CPU packs rows that are no multiple of a block with wrong scales.
        packed, state = bnb.quantize_4bit(weight.flatten(), quant_type="nf4", compress_statistics=True, blocksize=BLOCK)
        assert state.state2.blocksize == NESTED_BLOCK
        self.register_buffer("packed", packed)
        self.register_buffer("code", state.code)
        self.register_buffer("absmax", state.absmax)
        self.register_buffer("offset", state.offset)
        self.register_buffer("nested_absmax", state.state2.absmax)
        self.register_buffer("nested_code", state.state2.code)

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole stack, [experts, out, in]: a transient."""
        out = torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        self.unpack_into(out)
        return out

    def unpack_into(self, out: torch.Tensor) -> None:
        """Write the whole stack to [experts, out, in] with contiguous rows."""
        blocks = Blocks(self.code, self.absmax, self.nested_code, self.nested_absmax, self.offset)
        kernels(out.device).unpack(self.packed, blocks, out)

    def bytes_per_parameter(self) -> float:
        """Of everything that is stored; about 0.52."""
        return sum(buffer.nbytes for buffer in self.buffers()) / self.shape.numel()


def unpack_linear(layer: nn.Linear, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
    """The weight of a linear layer, [out, in], in full: a transient where the layer is in NF4.

    Args:
        layer: In NF4 or not.
        dtype: Of the result.
        out: [out, in] with contiguous rows: gets the result if given.
    """
    if not isinstance(layer, Linear4bit):
        return layer.weight.to(dtype) if out is None else out.copy_(layer.weight)
    assert isinstance(layer.weight, Params4bit)
    state = layer.weight.quant_state
    if out is None:
        out = torch.empty(state.shape, dtype=dtype, device=layer.weight.device)
    blocks = Blocks(state.code, state.absmax, state.state2.code, state.state2.absmax, state.offset)
    kernels(out.device).unpack(layer.weight.data, blocks, out.unsqueeze(0))
    return out
