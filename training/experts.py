"""NF4 experts: fused mixture-of-experts stacks in 4 bits, with a low-rank update per expert. The heart of the trainer.

bitsandbytes quantises `nn.Linear` only and passes over fused experts in silence, which leaves 93 % of Qwen3-VL-30B in
bf16. Here the stacks are packed as they are loaded, through public extension points of transformers:

    register_quantization_config, register_quantizer    a quantiser that also claims the expert stacks
    ConversionOps                                       packs one stack as its tensor arrives
    ALL_EXPERTS_FUNCTIONS                               the forward pass: tokens sorted by expert, grouped products

The backward pass unpacks a stack again instead of keeping it: autograd holds the packed bytes only.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import functional as bnb
from torch import nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

NAME = "nf4_experts"
"""Of the quantisation method and of the experts implementation."""

STACKS = ("gate_up_proj", "down_proj")
"""The fused parameters of an experts module: [experts, out, in] each."""


class PackedStack(nn.Module):
    """One stack of expert matrices in NF4 with double quantisation; everything it needs is a buffer."""

    packed: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor
    nested_absmax: torch.Tensor
    nested_code: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        """Pack a stack [experts, out, in] of bf16, fp16 or fp32."""
        super().__init__()
        self.shape = weight.shape
        # As one long row: bitsandbytes 0.50 on a CPU unpacks rows that are no multiple of a block with wrong scales.
        packed, state = bnb.quantize_4bit(weight.flatten(), quant_type="nf4", compress_statistics=True)
        self.blocksize, self.nested_blocksize = state.blocksize, state.state2.blocksize
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", state.absmax)
        self.register_buffer("offset", state.offset)
        self.register_buffer("nested_absmax", state.state2.absmax)
        self.register_buffer("nested_code", state.state2.code)

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole stack, [experts, out, in]: a transient."""
        nested = bnb.QuantState(
            absmax=self.nested_absmax, code=self.nested_code, blocksize=self.nested_blocksize, dtype=torch.float32
        )
        state = bnb.QuantState(
            absmax=self.absmax,
            shape=(self.shape.numel(),),
            blocksize=self.blocksize,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=nested,
        )
        return bnb.dequantize_4bit(self.packed, state).view(self.shape)

    def forward(self, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Multiply tokens with their experts: `grouped_linear` with a frozen weight."""
        return _FrozenProduct.apply(tokens, self, ends)

    def bytes_per_parameter(self) -> float:
        """Of everything that is stored; about 0.52."""
        return sum(buffer.nbytes for buffer in self.buffers()) / self.shape.numel()


class ExpertLora(nn.Module):
    """A low-rank update of every matrix in a stack, in fp32; the full update is never built."""

    def __init__(self, shape: torch.Size, rank: int, scale: float, device: torch.device) -> None:
        """Start as no update at all.

        Args:
            shape: [experts, out, in] of the stack.
            rank: Of the update of each expert.
            scale: Factor of the update.
            device: Of the stack.
        """
        super().__init__()
        experts, out, width = shape
        bound = width**-0.5
        self.scale = scale
        # On the CPU first, so that a seed means the same on every device.
        self.a = nn.Parameter(torch.empty(experts, rank, width).uniform_(-bound, bound).to(device))
        self.b = nn.Parameter(torch.zeros(experts, out, rank, device=device))

    def forward(self, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """The update's part of the product, for tokens sorted by expert."""
        inner = grouped_linear(tokens, self.a.to(tokens.dtype), ends)
        return self.scale * grouped_linear(inner, self.b.to(tokens.dtype), ends)


class _FrozenProduct(torch.autograd.Function):
    """Grouped product with a packed weight: only the packed bytes live until the backward pass."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, stack: PackedStack, ends: torch.Tensor) -> torch.Tensor:
        ctx.stack, ctx.ends = stack, ends
        return grouped_linear(tokens, stack.unpack(tokens.dtype), ends)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        weight = ctx.stack.unpack(gradient.dtype).transpose(1, 2)
        return grouped_linear(gradient, weight, ctx.ends), None, None


def grouped_linear(tokens: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply each group of tokens with the matrix of its expert.

    Args:
        tokens: [tokens, in], sorted by expert.
        weight: [experts, out, in], of the same dtype.
        ends: [experts], int32: where each expert's tokens end.

    Returns:
        [tokens, out].
    """
    # The grouped kernel needs rows of a multiple of 16 bytes; on a CPU separate products are faster.
    if tokens.is_cuda and tokens.dtype == torch.bfloat16 and weight.shape[1] % 8 == weight.shape[2] % 8 == 0:
        return functional.grouped_mm(tokens.contiguous(), weight.transpose(1, 2), offs=ends)
    groups = tokens.tensor_split(ends[:-1].tolist())
    return torch.cat([functional.linear(group, matrix) for group, matrix in zip(groups, weight, strict=True)])


def nf4_experts(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The forward pass of an experts module whose stacks are packed.

    Args:
        experts: Has `gate_up_proj` and `down_proj` (PackedStack) and, where trained, `gate_up_lora` and `down_lora`.
        hidden: [tokens, hidden].
        chosen: [tokens, experts per token], int64: which experts.
        weights: [tokens, experts per token]: how much of each.

    Returns:
        [tokens, hidden].
    """
    per_token = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=experts.num_experts)
    ends = counts.cumsum(0).to(torch.int32)
    inner = hidden[order // per_token]
    gate_up = _adapted(experts.gate_up_proj, experts.gate_up_lora, inner, ends)
    gate, up = gate_up.chunk(2, dim=-1)
    outer = _adapted(experts.down_proj, experts.down_lora, experts.act_fn(gate) * up, ends)
    # Back to the order of the tokens by a permutation: no atomic additions, so the sums come out the same each time.
    unsorted = outer[order.argsort()].unflatten(0, (-1, per_token))
    return (unsorted * weights.unsqueeze(-1)).sum(1).to(hidden.dtype)


def _adapted(stack: nn.Module, lora: nn.Module | None, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = stack(tokens, ends)
    return product if lora is None else product + lora(tokens, ends)


class NF4Config(BitsAndBytesConfig):
    """bitsandbytes NF4 with double quantisation, experts included."""

    def __init__(self, **options: Any) -> None:
        """Take the options of BitsAndBytesConfig that concern 4 bits."""
        for fixed in ("quant_method", "load_in_4bit"):
            options.pop(fixed, None)
        super().__init__(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **options)
        self.quant_method = NAME  # type: ignore[assignment]  # transformers types only the methods of its own


class NF4Quantizer(Bnb4BitHfQuantizer):
    """The stock 4-bit quantiser, which also packs expert stacks as they are loaded."""

    def __init__(self, quantization_config: NF4Config, **options: Any) -> None:
        """See Bnb4BitHfQuantizer."""
        super().__init__(quantization_config, **options)
        self.packed: dict[str, PackedStack] = {}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **options: Any) -> bool:
        """True for expert stacks, and for what the stock quantiser packs."""
        module, leaf = get_module_from_name(model, param_name)
        return _is_stack(module, leaf) or super().param_needs_quantization(model, param_name, **options)

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to a tensor as it arrives."""
        return _Pack(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **options: Any) -> PreTrainedModel:
        for name, stack in self.packed.items():
            module, leaf = get_module_from_name(model, name)
            delattr(module, leaf)
            module.register_module(leaf, stack)
            for lora in ("gate_up_lora", "down_lora"):
                module.register_module(lora, None)
        return super()._process_model_after_weight_loading(model, **options)


class _Pack(ConversionOps):
    """Packs one tensor."""

    def __init__(self, quantizer: NF4Quantizer) -> None:
        self.quantizer = quantizer
        self.linear = Bnb4bitQuantize(quantizer)

    def convert(self, input_dict: dict[str, Any], *positional: Any, **options: Any) -> dict[str, Any]:
        [(name, value)] = input_dict.items()
        module, leaf = get_module_from_name(options["model"], name)
        if not _is_stack(module, leaf):
            return self.linear.convert(input_dict, *positional, **options)
        stack = PackedStack(value[0] if isinstance(value, list) else value)
        self.quantizer.packed[name] = stack
        # The loader wants a tensor under this name; the stack replaces it once everything is loaded.
        return {name: nn.Parameter(stack.packed, requires_grad=False)}


def _is_stack(module: nn.Module, leaf: str) -> bool:
    return leaf in STACKS and all(hasattr(module, name) for name in (*STACKS, "num_experts"))


def register() -> None:
    """Make the quantiser and the experts implementation known to transformers, once."""
    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, nf4_experts)
        register_quantization_config(NAME)(NF4Config)
        register_quantizer(NAME)(NF4Quantizer)
