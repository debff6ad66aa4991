"""One forward pass for all variants of a model side by side, weights read where they are needed and dropped again.

The stock model is built without memory for weights. Its batch holds every prompt once per variant, one variant after
the other, so that the first dimension of whatever reaches a module with weights can be cut into a part per variant;
each part meets that variant's weights. Nothing else of the model is touched: what it does with pictures, places and
routers is transformers' own code. A weight of the base is read once for all variants that start from it, and there is
never more in memory than one matrix of each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from training.parity.variants import Span, Variant

HEAD_ROWS = 8192
"""Of the head, read at a time: 64 MiB at a hidden size of 2048."""

HEAD = "lm_head.weight"


def build_empty(path: Path) -> PreTrainedModel:
    """A model by its config alone, its weights without memory; buffers, such as rotary frequencies, are real."""
    config = AutoConfig.from_pretrained(path)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = kind.from_config(config, dtype=torch.float32).eval()
    model.requires_grad_(False)
    return model


class SideBySide:
    """A model whose weights come from several variants."""

    def __init__(self, path: Path, variants: Sequence[Variant], device: str) -> None:
        """Build it.

        Args:
            path: A folder with the config.
            variants: What is compared.
            device: Where they have their tensors.
        """
        self.variants, self.device = variants, device
        self.model = build_empty(path)
        for name, module in list(self.model.named_modules()):
            for leaf, buffer in module.named_buffers(recurse=False):
                setattr(module, leaf, buffer.to(device))
            if any(True for _ in module.parameters(recurse=False)):
                module.forward = _streamed(name, module, variants)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Of the decoder."""
        return list(self.model.get_decoder().get_submodule("layers").children())

    def after_each_layer(self, tick: Callable[[], None]) -> None:
        """Call this after each layer of the decoder."""
        for layer in self.layers:
            layer.register_forward_hook(lambda *_: tick())

    @torch.no_grad()
    def hidden(self, inputs: dict[str, torch.Tensor], labelled: torch.Tensor) -> torch.Tensor:
        """What the head makes its predictions from.

        Args:
            inputs: A batch without labels, from `encoding.collate`.
            labelled: [batch, tokens], bool: at which tokens a prediction is wanted, of the token itself.

        Returns:
            [variants, predictions, hidden].
        """
        count = len(self.variants)
        moved = {name: _repeated(name, tensor, count).to(self.device) for name, tensor in inputs.items()}
        hidden = self.model.get_submodule("model")(**moved, use_cache=False).last_hidden_state
        chosen = labelled[:, 1:].repeat(count, 1).to(self.device)
        return hidden[:, :-1][chosen].unflatten(0, (count, -1))

    def logprobs(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each variant predicts: [predictions, vocabulary] in nats, for [variants, predictions, hidden]."""
        for variant, rows in zip(self.variants, hidden, strict=True):
            head = HEAD if HEAD in variant else self.embedding
            spans = (variant.tensor(head, span) for span in _spans(self.vocabulary))
            yield torch.cat([rows @ weights.T for weights in spans], dim=1).log_softmax(-1)

    @property
    def vocabulary(self) -> int:
        """Tokens that can be predicted."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def embedding(self) -> str:
        """Name of the table that stands in for a head where there is none."""
        table = self.model.get_input_embeddings()
        return next(f"{name}.weight" for name, module in self.model.named_modules() if module is table)


def _streamed(name: str, module: nn.Module, variants: Sequence[Variant]) -> Callable[..., Any]:
    """The forward pass of a module with weights of its own, over the parts of all variants."""
    if isinstance(module, nn.Linear):
        return Linear(name, module.bias is not None, variants)
    if isinstance(module, nn.Embedding):
        return Embedding(f"{name}.weight", variants)
    if name.endswith(".experts"):
        return Experts(name, module.get_submodule("act_fn"), variants)
    # A copy, because the module's own forward pass is about to be replaced.
    return Leaf(name, copy.copy(module), [leaf for leaf, _ in module.named_parameters(recurse=False)], variants)


@dataclass(frozen=True)
class Linear:
    """A matrix."""

    name: str
    biased: bool
    variants: Sequence[Variant]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return torch.cat([self._part(variant, part) for variant, part in _parts(self.variants, rows)])

    def _part(self, variant: Variant, rows: torch.Tensor) -> torch.Tensor:
        out = product(variant, f"{self.name}.weight", rows)
        return out + variant.tensor(f"{self.name}.bias") if self.biased else out


@dataclass(frozen=True)
class Embedding:
    """A table, of which only the rows that are asked for are read."""

    table: str
    variants: Sequence[Variant]

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """As nn.Embedding."""
        return torch.cat([self._part(variant, part) for variant, part in _parts(self.variants, places)])

    def _part(self, variant: Variant, places: torch.Tensor) -> torch.Tensor:
        wanted, index = places.unique(return_inverse=True)
        rows = [variant.tensor(self.table, (place, place + 1)) for place in wanted.tolist()]
        return torch.cat(rows)[index]


@dataclass(frozen=True)
class Experts:
    """A mixture of SwiGLU experts, one at a time."""

    name: str
    activation: nn.Module
    variants: Sequence[Variant]

    def __call__(self, rows: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """As the stock module: [tokens, hidden], and for each token the experts chosen and how much each counts."""
        out = torch.zeros_like(rows)
        for expert in chosen.unique().tolist():
            parts = zip(
                self.variants, *(each.chunk(len(self.variants)) for each in (out, rows, chosen, weights)), strict=True
            )
            for variant, of_out, of_rows, of_chosen, of_weights in parts:
                tokens, places = (of_chosen == expert).nonzero(as_tuple=True)
                if len(tokens):
                    answer = self._one(variant, expert, of_rows[tokens])
                    of_out.index_add_(0, tokens, answer * of_weights[tokens, places, None])
        return out

    def _one(self, variant: Variant, expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = (product(variant, f"{self.name}.{expert}.{part}_proj.weight", rows) for part in ("gate", "up"))
        return product(variant, f"{self.name}.{expert}.down_proj.weight", self.activation(gate) * up)


@dataclass(frozen=True)
class Leaf:
    """Any other module with small weights: norms, routers, the embedding of patches."""

    name: str
    stock: nn.Module
    leaves: Sequence[str]
    variants: Sequence[Variant]

    def __call__(self, rows: torch.Tensor) -> Any:
        """As the stock module; what it returns is put together again, one by one if there are several."""
        parts = [self._part(variant, part) for variant, part in _parts(self.variants, rows)]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _part(self, variant: Variant, rows: torch.Tensor) -> Any:
        weights = {leaf: variant.tensor(f"{self.name}.{leaf}") for leaf in self.leaves}
        return functional_call(self.stock, weights, (rows,))


def product(variant: Variant, name: str, rows: torch.Tensor) -> torch.Tensor:
    """[..., out] of [..., in] with a weight, inputs rounded where the engine rounds them."""
    return functional.linear(round_rows(rows) if name in variant.rounded_inputs else rows, variant.tensor(name))


def round_rows(rows: torch.Tensor) -> torch.Tensor:
    """Each row on 127 steps of its own either way, as vLLM's dynamic INT8 per token."""
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 127
    return (rows / scale).round() * scale


def _repeated(name: str, tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A batch so many times. It is the first dimension of every tensor but the positions, which have it second."""
    return torch.cat([tensor] * count, dim=1 if name == "position_ids" else 0)


def _parts(variants: Sequence[Variant], rows: torch.Tensor) -> Iterator[tuple[Variant, torch.Tensor]]:
    return zip(variants, rows.chunk(len(variants)), strict=True)


def _spans(rows: int) -> list[Span]:
    return [(first, min(first + HEAD_ROWS, rows)) for first in range(0, rows, HEAD_ROWS)]
