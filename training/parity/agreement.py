"""How far predictions are from those of a reference, gathered block by block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipelines.parity import Agreement


@dataclass
class Comparison:
    """Of one variant with the reference."""

    divergences: list[torch.Tensor] = field(default_factory=list)
    same: list[torch.Tensor] = field(default_factory=list)

    def add(self, reference: torch.Tensor, found: torch.Tensor) -> None:
        """Compare log probabilities, [predictions, vocabulary] each, in nats."""
        self.divergences.append((reference.exp() * (reference - found)).sum(-1).cpu())
        self.same.append((reference.argmax(-1) == found.argmax(-1)).cpu())

    def agreement(self) -> Agreement:
        """Over all predictions."""
        divergence, same = torch.cat(self.divergences), torch.cat(self.same)
        return Agreement(
            mean_kl=float(divergence.mean()),
            max_kl=float(divergence.max()),
            top1=float(same.double().mean()),
            positions=len(divergence),
        )
