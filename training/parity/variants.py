"""The forms that a fine-tuned model takes, as weights read one tensor at a time, in fp32.

Names are those of the exported model, a matrix for each projection of each expert, whatever lies on disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from pipelines.errors import ExportRejected
from training.merge import LoraReader
from training.parity.nf4 import Packing, is_packed
from training.weights.layout import expert_shape, plan
from training.weights.shards import Stored, read_headers

Span = tuple[int, int]
"""First row and the one after the last."""


class Variant(Protocol):
    """A model's weights."""

    rounded_inputs: Set[str]
    """Weights before which the engine rounds activations to INT8."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, in fp32."""


class Original:
    """The base with its adapter in low rank beside it: the reference."""

    rounded_inputs: Set[str] = frozenset()

    def __init__(self, base: Path, adapter: Path | None, device: str) -> None:
        """Read headers, and check the adapter.

        Args:
            base: A checkpoint in any layout.
            adapter: In PEFT's layout; None for the base alone.
            device: Where tensors are wanted.

        Raises:
            ExportRejected: The experts lie in no layout that is known, or the adapter cannot be merged.
        """
        self.base = base
        experts = expert_shape(json.loads((base / "config.json").read_text()))
        self.planned = {one.output.name: one for one in plan(read_headers(base), experts)}
        self.lora, self.device = LoraReader(adapter, experts) if adapter else None, device
        # The other variants start from the same tensors: the three of an expert, and what two of them lie in.
        self.stored, self.update = lru_cache(maxsize=4)(self._stored), lru_cache(maxsize=4)(self._update)
        self._read = lru_cache(maxsize=1)(Stored.read)

    def __contains__(self, name: str) -> bool:
        """See Variant."""
        return name in self.planned

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant; the sum is not rounded, so that products are those of base and update apart."""
        return _sum(self.stored(name, span).float(), self.update(name))

    def _stored(self, name: str, span: Span | None = None) -> torch.Tensor:
        """A base tensor as it is.

        Raises:
            ExportRejected: There is none.
        """
        if name not in self.planned:
            raise ExportRejected(f"{self.base}: holds no {name}; download the model again")
        one = self.planned[name]
        if not one.from_stack:
            return rows_of(one.source, span).to(self.device)
        weight = self._read(one.source, one.expert)
        return (weight.T if one.transposed else weight)[one.rows].to(self.device)

    def _update(self, name: str) -> torch.Tensor | None:
        one = self.planned[name]
        update = self.lora.update(one.target, one.expert, one.rows) if self.lora else None
        return None if update is None else update.to(self.device).dense()


class _OfOriginal:
    """What has the base's tensors, in another form."""

    rounded_inputs: Set[str] = frozenset()

    def __init__(self, original: Original) -> None:
        """Start from the base."""
        self.original = original

    def __contains__(self, name: str) -> bool:
        """See Variant."""
        return name in self.original


class Unadapted(_OfOriginal):
    """The base alone."""

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant."""
        return self.original.stored(name, span).float()


class Trained(_OfOriginal):
    """What was trained: attention, MLP and experts in NF4, the adapter beside them."""

    def __init__(self, original: Original) -> None:
        """Start from the base."""
        super().__init__(original)
        self.packing = Packing(original.planned, original.stored)

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant."""
        if not is_packed(name):
            return self.original.tensor(name, span)
        return _sum(self.packing.restored(name), self.original.update(name))


class Merged(_OfOriginal):
    """The adapter merged: the sum rounded to the base's own type."""

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant."""
        return self.original.tensor(name, span).to(self.original.stored(name, span).dtype).float()


class Written:
    """An exported folder as an engine reads it: by its own config, tensor names and scales, and nothing of ours."""

    def __init__(self, folder: Path, device: str) -> None:
        """Read headers only.

        Args:
            folder: In bf16, or in a scheme of compressed-tensors.
            device: Where tensors are wanted.
        """
        self.folder, self.device = folder, device
        self.stored = {tensor.name: tensor for tensor in read_headers(folder)}
        config = json.loads((folder / "config.json").read_text())
        groups: Sequence[dict[str, Any]] = [*config.get("quantization_config", {}).get("config_groups", {}).values()]
        self.quantized = bool(groups)
        self.bits: int = groups[0]["weights"]["num_bits"] if groups else 16
        names = {name.removesuffix("_scale") for name in self.stored if name.endswith("_scale")}
        self.rounded_inputs: Set[str] = names if groups and groups[0].get("input_activations") else set()

    def __contains__(self, name: str) -> bool:
        """See Variant."""
        return name in self.stored or f"{name}_packed" in self.stored

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant.

        Raises:
            ExportRejected: There is no such tensor.
        """
        if f"{name}_scale" not in self.stored:
            return self._read(name, span).to(self.device).float()
        assert span is None, "embedding and head are not quantised"
        steps, scale = (each.to(self.device).float() for each in (self._steps(name), self._read(f"{name}_scale")))
        return (steps.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)

    def _steps(self, name: str) -> torch.Tensor:
        packed = self.stored.get(f"{name}_packed")
        if packed is None:
            return self._read(name)
        shape = torch.Size(self._read(f"{name}_shape").tolist())
        return unpack_from_int32(packed.read().to(self.device), self.bits, shape)

    def _read(self, name: str, span: Span | None = None) -> torch.Tensor:
        if name not in self.stored:
            raise ExportRejected(f"{self.folder}: holds no {name}; export the model again")
        return rows_of(self.stored[name], span)


class Beside(Written):
    """An adapter as it was written, beside an exported base: both are read as an engine reads them.

    Where the engine rounds activations, it gives the adapter those before rounding; here both see the rounded ones.
    """

    def __init__(self, folder: Path, adapter: Original) -> None:
        """Read headers only.

        Args:
            folder: The base as it is served.
            adapter: The published base with the adapter that was written.
        """
        super().__init__(folder, adapter.device)
        self.adapter = adapter

    def tensor(self, name: str, span: Span | None = None) -> torch.Tensor:
        """See Variant."""
        return _sum(super().tensor(name, span), self.adapter.update(name))


def rows_of(tensor: Stored, span: Span | None) -> torch.Tensor:
    """A stored tensor or some of its rows; nothing else is read."""
    if span is None:
        return tensor.read()
    first, last = span
    row_bytes = tensor.nbytes // tensor.shape[0]
    part = replace(tensor, shape=(last - first, *tensor.shape[1:]), offset=tensor.offset + first * row_bytes)
    return part.read()


def _sum(weight: torch.Tensor, update: torch.Tensor | None) -> torch.Tensor:
    return weight if update is None else weight + update
