"""The loss on answer tokens only, a few at a time, and exact match by the same forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from training.chat.encoding import IGNORE

CHUNK = 512
"""Tokens whose logits exist at the same time: 300 MB in fp32 for a vocabulary of 151,936."""


class AnswerLoss(nn.Module):
    """A language model that returns its loss: logits exist for a few labelled positions at a time.

    A module of its own, so that what wraps it (a data-parallel wrapper, Trainer) sees one forward pass.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model with the parts `model` (the trunk) and `lm_head`."""
        super().__init__()
        self.model = model

    def forward(
        self, labels: torch.Tensor, items: torch.Tensor | int | None = None, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per answer token.

        Args:
            labels: [batch, tokens], IGNORE where nothing is to be learned.
            items: What the sum is divided by where it is not this batch's number of answer tokens, but that of all
                the batches of a step.
            inputs: What the model takes, from `encoding.collate`.
        """
        total, count = self.summed(labels, **inputs)
        return total / (count if items is None else items)

    def summed(self, labels: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The sum over answer tokens, and their number."""
        hidden, targets = self._labelled(labels, inputs)
        total: torch.Tensor = _CrossEntropy.apply(hidden, self.model.get_submodule("lm_head").weight, targets)
        return total, len(targets)

    def answers(self, labels: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] in fp32, and the tokens they should name."""
        hidden, targets = self._labelled(labels, inputs)
        return self.model.get_submodule("lm_head")(hidden).float(), targets

    def _labelled(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [answer tokens, hidden] of the positions before a labelled token, and those tokens."""
        hidden = self.model.get_submodule("model")(**inputs, use_cache=False).last_hidden_state
        labelled = labels[:, 1:] != IGNORE
        return hidden[:, :-1][labelled], labels[:, 1:][labelled]


class _CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a frozen head, in nats; the gradient is made on the way, while the logits exist."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert not head.requires_grad
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=hidden.device)
        for begin in range(0, len(targets), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            logits = (hidden[chunk] @ head.T).float()
            index = targets[chunk, None]
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer - logits.gather(1, index)).sum()
            if gradient is not None:
                probabilities = logits.sub_(normalizer).exp_()
                probabilities.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
                gradient[chunk] = probabilities.to(hidden.dtype) @ head
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0]).to(gradient.dtype), None, None


@torch.no_grad()
def exact_matches(model: AnswerLoss, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether each row would be answered exactly by greedy decoding: [batch], bool.

    The most likely token equals the right one at every position of the answer, each given the right ones before it:
    by induction that is what greedy decoding writes, end token included.
    """
    logits, targets = model.answers(**batch)
    rows = (batch["labels"][:, 1:] != IGNORE).nonzero()[:, 0]
    wrong = torch.zeros(len(batch["labels"]), dtype=torch.long, device=rows.device)
    return wrong.index_add(0, rows, (logits.argmax(-1) != targets).long()) == 0
