"""NF4 experts: really four bits, the right numbers and gradients, and nothing but packed bytes kept for backward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from training import quantizer
from training.experts import ExpertLora, nf4_experts
from training.layers.grouped import grouped_outer, grouped_product, route
from training.layers.nf4 import PackedStack
from training.loss import AnswerLoss
from training.model import attach_lora, load_quantized
from training.quantizer import NF4Config

EXPERTS, HIDDEN, WIDTH = 5, 64, 32


def _module(rank: int = 4, *, keep: bool = False) -> SimpleNamespace:
    torch.manual_seed(0)
    shapes = {"gate_up": (EXPERTS, 2 * WIDTH, HIDDEN), "down": (EXPERTS, HIDDEN, WIDTH)}
    module = SimpleNamespace(num_experts=EXPERTS, keep=keep)
    for name, shape in shapes.items():
        setattr(module, f"{name}_proj", PackedStack(torch.randn(shape) / 8))
        lora = ExpertLora(torch.Size(shape), rank, 2.0, torch.device("cpu"))
        torch.nn.init.normal_(lora.b, std=0.1)
        setattr(module, f"{name}_lora", lora)
    return module


def _reference(
    module: SimpleNamespace, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Token by token over full fp32 matrices, update and all."""
    full = {}
    for name in ("gate_up", "down"):
        lora = getattr(module, f"{name}_lora")
        full[name] = getattr(module, f"{name}_proj").unpack(torch.float32) + lora.scale * lora.b @ lora.a
    rows = []
    for token, experts_of_token, shares in zip(hidden, chosen, weights, strict=True):
        row = torch.zeros(HIDDEN)
        for expert, share in zip(experts_of_token.tolist(), shares, strict=True):
            gate, up = (full["gate_up"][expert] @ token).chunk(2)
            row = row + share * (full["down"][expert] @ (torch.nn.functional.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def _inputs(tokens: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(tokens, EXPERTS, generator=generator)
    scores[:, 2] = 0  # one expert is never chosen
    weights, chosen = scores.topk(2)
    return torch.randn(tokens, HIDDEN, generator=generator, requires_grad=True), chosen, weights.requires_grad_()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("rank", [4, 8])
def test_output_and_every_gradient_equal_the_dequantised_reference(rank: int, keep: bool) -> None:
    module, (hidden, chosen, weights) = _module(rank, keep=keep), _inputs()
    parameters = [hidden, weights, *module.gate_up_lora.parameters(), *module.down_lora.parameters()]
    results = []
    for forward in (nf4_experts, _reference):
        out = forward(module, hidden, chosen, weights)
        results.append((out, torch.autograd.grad(out.square().sum(), parameters)))
    (ours, gradients), (reference, wanted) = results
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert float((gradient - want).norm()) <= 1e-4 * float(want.norm())
        assert want.any()


def test_backward_keeps_packed_bytes_only() -> None:
    module, (hidden, chosen, weights) = _module(), _inputs()
    module.gate_up_lora = module.down_lora = None
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        nf4_experts(module, hidden, chosen, weights).sum().backward()
    assert kept
    assert max(tensor.numel() for tensor in kept) < EXPERTS * HIDDEN * WIDTH


def test_a_stack_takes_little_more_than_half_a_byte_a_parameter() -> None:
    # The table of the second quantisation is a kilobyte, whatever the size.
    assert PackedStack(torch.randn(16, 256, 128)).bytes_per_parameter() < 0.52


def test_packing_is_close_and_the_same_in_every_compute_type() -> None:
    weight = torch.randn(EXPERTS, HIDDEN, WIDTH)  # rows of half a block, which bitsandbytes alone gets wrong on a CPU
    stack = PackedStack(weight)
    unpacked = stack.unpack(torch.float32)
    assert 0.05 < float((unpacked - weight).norm() / weight.norm()) < 0.12
    torch.testing.assert_close(stack.unpack(torch.bfloat16), unpacked.bfloat16(), rtol=0.01, atol=0)


def test_what_is_needed_to_unpack_moves_and_saves_with_the_module() -> None:
    first, second = PackedStack(torch.randn(2, 8, 64)), PackedStack(torch.randn(2, 8, 64))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.unpack(torch.float32), second.unpack(torch.float32))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_each_group_meets_its_own_matrix(sizes: list[int]) -> None:
    rows, others, matrices = torch.randn(sum(sizes), 4), torch.randn(sum(sizes), 2), torch.randn(len(sizes), 4, 3)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    groups, partners = rows.split(sizes), others.split(sizes)
    wanted = [group @ matrix for group, matrix in zip(groups, matrices, strict=True)]
    torch.testing.assert_close(grouped_product(rows, matrices, ends), torch.cat(wanted))
    outer = [group.T @ partner for group, partner in zip(groups, partners, strict=True)]
    torch.testing.assert_close(grouped_outer(rows, others, ends), torch.stack(outer))


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 9), per_token=st.integers(1, 3), experts=st.integers(3, 130), seed=st.integers(0, 99))
def test_routing_sorts_by_expert_and_finds_every_row_again(
    tokens: int, per_token: int, experts: int, seed: int
) -> None:
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    chosen = scores.topk(per_token).indices
    routing = route(chosen, experts)
    by_expert = chosen.flatten()[routing.order]
    assert torch.equal(by_expert, by_expert.sort().values)
    assert torch.equal(routing.ends, torch.bincount(by_expert, minlength=experts).cumsum(0).to(torch.int32))
    assert torch.equal(routing.tokens[routing.places], torch.arange(tokens)[:, None].expand(-1, per_token))
    assert torch.equal(by_expert[routing.places], chosen)


def test_a_text_only_mixture_is_packed_by_the_same_code(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=128, intermediate_size=96, moe_intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = Qwen3MoeForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    model = load_quantized(tmp_path, torch.float32, "cpu").eval()
    adapted = attach_lora(model, "attention+experts", 4, 8, seed=0)
    assert len(adapted) == 2 * (4 + 2)
    for ours, theirs in zip(model.model.layers, reference.model.layers, strict=True):
        unpacked = ours.mlp.experts.gate_up_proj.unpack(torch.float32)
        stock = theirs.mlp.experts.gate_up_proj.detach()
        assert float((unpacked - stock).norm() / stock.norm()) < 0.12
    ids = torch.arange(16)[None]
    with torch.no_grad():
        ours, stock = model(ids).logits, reference(ids).logits
    assert float((ours - stock).norm() / stock.norm()) < 0.5
    AnswerLoss(model)(labels=ids, input_ids=ids).backward()
    assert all(module.b.grad is not None and module.b.grad.any() for module in adapted.values())


@pytest.mark.parametrize("name", ["quant_method", "load_in_4bit"])
def test_the_method_is_not_an_option(name: str) -> None:
    assert NF4Config(**{name: "other"}).quant_method == quantizer.NAME
