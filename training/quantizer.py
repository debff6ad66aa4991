"""Packs fused experts while a checkpoint is loaded, through public extension points of transformers.

bitsandbytes quantises `nn.Linear` only and passes over fused experts in silence, which leaves 93 % of Qwen3-VL-30B in
bf16. Here every stack is packed as its tensor arrives, so that a load never holds more than one of them in full:

    register_quantization_config, register_quantizer    a quantiser that also claims the expert stacks
    ConversionOps                                       packs one stack as its tensor arrives
    ALL_EXPERTS_FUNCTIONS                               the forward pass of experts.py
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from training.experts import STACKS, nf4_experts
from training.layers.nf4 import PackedStack

NAME = "nf4_experts"
"""Of the quantisation method and of the experts implementation."""


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
            module.keep = True
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
