"""NF4 as the trainer packs it, one matrix at a time: the same bits without a stack of experts in memory.

A stack is packed as one long row. Blocks of 64 weights know nothing of each other, so a matrix can be packed alone;
only the scales, which are packed once more by their common mean, have to be taken from the whole stack.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache

import bitsandbytes.functional as bnb
import torch

from training.kernels.blocks import BLOCK, NESTED_BLOCK
from training.model import linear_pattern
from training.weights.layout import SINGLE, Planned


def is_packed(name: str) -> bool:
    """Whether the trainer has a weight in NF4: attention, MLP and experts."""
    linear = re.fullmatch(linear_pattern("attention+experts"), name.removesuffix(".weight"))
    return bool(linear or SINGLE.fullmatch(name))


class Packing:
    """Packs weights and writes them out again."""

    def __init__(self, planned: Mapping[str, Planned], stored: Callable[[str], torch.Tensor]) -> None:
        """Know what is packed together.

        Args:
            planned: Of the base, by name.
            stored: Reads one of its tensors.
        """
        self.planned, self.stored = planned, stored
        self.stacks: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(planned, key=lambda name: (planned[name].expert or 0, planned[name].span or (0, 0))):
            self.stacks[planned[name].target].append(name)
        self.scales = lru_cache(maxsize=2)(self._scales)

    def restored(self, name: str) -> torch.Tensor:
        """A weight as the trainer computes with it: [out, in], fp32."""
        weight = self.stored(name).float()
        packed, state = bnb.quantize_4bit(weight.flatten(), quant_type="nf4", blocksize=BLOCK)
        state.absmax = self.scales(self.planned[name].target)[name]
        return bnb.dequantize_4bit(packed, state).view_as(weight)

    def _scales(self, stack: str) -> dict[str, torch.Tensor]:
        """The scales of every matrix of a stack, after they were packed and written out together."""
        names = self.stacks[stack]
        scales = [self.stored(name).float().reshape(-1, BLOCK).abs().amax(1) for name in names]
        together = torch.cat(scales)
        offset = together.mean()
        packed, state = bnb.quantize_blockwise(together - offset, blocksize=NESTED_BLOCK)
        restored = bnb.dequantize_blockwise(packed, state) + offset
        return dict(zip(names, restored.split([len(each) for each in scales]), strict=True))
