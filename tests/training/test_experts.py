"""NF4 experts: really four bits, the right numbers and gradients, and nothing but packed bytes kept for backward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from training import experts
from training.experts import ExpertLora, NF4Config, PackedStack, grouped_linear, nf4_experts

EXPERTS, HIDDEN, WIDTH = 5, 64, 32


def _module(rank: int = 4) -> SimpleNamespace:
    torch.manual_seed(0)
    shapes = {"gate_up": (EXPERTS, 2 * WIDTH, HIDDEN), "down": (EXPERTS, HIDDEN, WIDTH)}
    module = SimpleNamespace(num_experts=EXPERTS, act_fn=torch.nn.functional.silu)
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
            row = row + share * (full["down"][expert] @ (module.act_fn(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def _inputs(tokens: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(tokens, EXPERTS, generator=generator)
    scores[:, 2] = 0  # one expert is never chosen
    weights, chosen = scores.topk(2)
    return torch.randn(tokens, HIDDEN, generator=generator, requires_grad=True), chosen, weights


def test_output_and_every_gradient_equal_the_dequantised_reference() -> None:
    module, (hidden, chosen, weights) = _module(), _inputs()
    parameters = [hidden, *module.gate_up_lora.parameters(), *module.down_lora.parameters()]
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
    tokens, weight = torch.randn(sum(sizes), 4), torch.randn(len(sizes), 3, 4)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    wanted = [group @ matrix.T for group, matrix in zip(tokens.split(sizes), weight, strict=True)]
    torch.testing.assert_close(grouped_linear(tokens, weight, ends), torch.cat(wanted))


def test_a_text_only_mixture_is_packed_by_the_same_code(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, moe_intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = Qwen3MoeForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    experts.register()
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=NF4Config(bnb_4bit_compute_dtype=torch.float32),
        experts_implementation=experts.NAME,
        dtype=torch.float32,
    ).eval()
    stacks = [module for module in model.modules() if isinstance(module, PackedStack)]
    assert len(stacks) == 4
    for ours, theirs in zip(model.model.layers, reference.model.layers, strict=True):
        unpacked = ours.mlp.experts.gate_up_proj.unpack(torch.float32)
        stock = theirs.mlp.experts.gate_up_proj.detach()
        assert float((unpacked - stock).norm() / stock.norm()) < 0.12
    ids = torch.arange(16)[None]
    with torch.no_grad():
        ours, stock = model(ids).logits, reference(ids).logits
    assert float((ours - stock).norm() / stock.norm()) < 0.5


@pytest.mark.parametrize("name", ["quant_method", "load_in_4bit"])
def test_the_method_is_not_an_option(name: str) -> None:
    assert NF4Config(**{name: "other"}).quant_method == experts.NAME
