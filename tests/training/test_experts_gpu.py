"""On a GPU in bf16, the experts give what they give on a CPU in fp32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from training.experts import ExpertLora, nf4_experts
from training.layers.nf4 import PackedStack

pytestmark = pytest.mark.gpu


def _module(experts: int, hidden: int, width: int, rank: int, *, keep: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    module = SimpleNamespace(num_experts=experts, keep=keep)
    for name, shape in {"gate_up": (experts, 2 * width, hidden), "down": (experts, hidden, width)}.items():
        setattr(module, f"{name}_proj", PackedStack(torch.randn(shape) * shape[2] ** -0.5))
        lora = ExpertLora(torch.Size(shape), rank, 2.0, torch.device("cpu")) if rank else None
        if lora:
            torch.nn.init.normal_(lora.b, std=0.1)
        setattr(module, f"{name}_lora", lora)
    return module


def _results(module: SimpleNamespace, inputs: list[torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
    hidden, weights = (tensor.detach().requires_grad_() for tensor in inputs)
    loras = [lora for lora in (module.gate_up_lora, module.down_lora) if lora]
    parameters = [hidden, weights, *(p for lora in loras for p in lora.parameters())]
    out = nf4_experts(module, hidden, chosen, weights)
    return [out, *torch.autograd.grad(out.float().square().sum(), parameters)]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("rank", [0, 4, 16])
@pytest.mark.parametrize(("experts", "hidden", "width"), [(6, 128, 96), (16, 256, 128)])
def test_results_and_gradients_equal_the_cpu(experts: int, hidden: int, width: int, rank: int, keep: bool) -> None:
    module = _module(experts, hidden, width, rank, keep=keep)
    weights, chosen = torch.rand(300, experts).topk(2)
    chosen[chosen == 3] = 4  # one expert gets nothing
    inputs = [torch.randn(300, hidden), weights]
    wanted = _results(module, inputs, chosen)
    for name in ("gate_up_proj", "down_proj", "gate_up_lora", "down_lora"):
        part = getattr(module, name)
        setattr(module, name, part.cuda() if part else None)
    ours = _results(module, [tensor.cuda().bfloat16() for tensor in inputs], chosen.cuda())
    for got, want in zip(ours, wanted, strict=True):
        assert float((got.cpu().float() - want).norm() / want.norm()) < 1e-2
