"""The loss on answer tokens only, and exact match by the same forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.chat.encoding import IGNORE


class AnswerLoss(nn.Module):
    """A language model that returns its loss: logits exist for labelled positions only, not for the whole batch.

    A module of its own, so that what wraps it (a data-parallel wrapper, Trainer) sees one forward pass.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model with the parts `model` (the trunk) and `lm_head`."""
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per answer token.

        Args:
            labels: [batch, tokens], IGNORE where nothing is to be learned.
            inputs: What the model takes, from `encoding.collate`.
        """
        logits, targets = self.answers(labels, **inputs)
        return functional.cross_entropy(logits, targets)

    def answers(self, labels: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] in fp32, and the tokens they should name."""
        trunk, head = self.model.get_submodule("model"), self.model.get_submodule("lm_head")
        hidden = trunk(**inputs, use_cache=False).last_hidden_state
        labelled = labels[:, 1:] != IGNORE
        return head(hidden[:, :-1][labelled]).float(), labels[:, 1:][labelled]


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
