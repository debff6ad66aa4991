"""Computing again gives the very gradients that keeping gives, wherever the layers' inputs are kept."""

from __future__ import annotations

import weakref

import pytest
import torch

from pipelines.artifacts import BaseSnapshot
from training.layers import recompute
from training.layers.recompute import checkpoint_layers, recomputing
from training.loss import AnswerLoss
from training.model import attach_lora, load_quantized

IDS = torch.arange(5, 45).view(2, 20)


def _gradients(base: BaseSnapshot, activations: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = load_quantized(base.path, torch.float32, "cpu")
    adapted = attach_lora(model, "attention+experts", 4, 8, seed=0)
    torch.manual_seed(1)
    for module in adapted.values():
        torch.nn.init.normal_(module.b, std=0.05)
    if activations != "keep":
        checkpoint_layers(model, offload=activations == "offload")
    loss = AnswerLoss(model).train()(labels=IDS, input_ids=IDS)
    loss.backward()
    return loss.detach(), [p.grad for module in adapted.values() for p in module.parameters(recurse=False)]


@pytest.mark.parametrize("activations", ["recompute", "offload"])
def test_loss_and_gradients_are_the_same_to_the_bit(activations: str, any_base: BaseSnapshot) -> None:
    loss, gradients = _gradients(any_base, activations)
    wanted, kept = _gradients(any_base, "keep")
    assert torch.equal(loss, wanted)
    assert all(gradient is not None and gradient.any() for gradient in kept)
    for gradient, want in zip(gradients, kept, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-7)
    assert not recomputing.get()


def test_layer_inputs_do_not_outlive_their_layer(moe_base: BaseSnapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    references: list[weakref.ref[Watched]] = []
    alive: list[int] = []

    class Watched(recompute._Kept):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor)
            references.append(weakref.ref(self))

        def again(self) -> torch.Tensor:
            alive.append(sum(reference() is not None for reference in references))
            return super().again()

    monkeypatch.setattr(recompute, "_Kept", Watched)
    _gradients(moe_base, "recompute")
    assert alive == [3, 2, 1]
