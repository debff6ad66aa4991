"""What a calibrator wrote is the model that it was given: rounded twice, moved into a norm, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme, scheme_of
from training.calibrated.comparison import compare
from training.int8 import is_quantized, pack, quantize

Tensors = dict[str, torch.Tensor]

LAYER = "model.language_model.layers.0"
NORM = f"{LAYER}.input_layernorm.weight"
QUERY, OUTPUT = f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.o_proj.weight"
GATE, UP = (f"{LAYER}.mlp.experts.0.{part}_proj.weight" for part in ("gate", "up"))
ROUTER = f"{LAYER}.mlp.gate.weight"


@pytest.fixture
def weights() -> Tensors:
    """A layer's worth of each kind of tensor."""
    torch.manual_seed(0)
    shapes = {NORM: (64,), QUERY: (32, 64), OUTPUT: (64, 32), GATE: (96, 64), UP: (96, 64), ROUTER: (4, 64)}
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def _stored(weights: Tensors, scheme: Scheme) -> Tensors:
    """Rounded to nearest, under the names that a calibrator gives."""
    tensors: Tensors = {}
    for name, weight in weights.items():
        if not is_quantized(name, tuple(weight.shape)):
            tensors[name] = weight
            continue
        rounded = quantize(weight, scheme)
        tensors[f"{name}_scale"] = rounded.scale
        if scheme.int8_activations:
            tensors[name] = rounded.steps
        else:
            tensors[f"{name}_packed"] = pack(rounded.steps, scheme.bits or 8)
    return tensors


def _folder(path: Path, tensors: Tensors) -> Path:
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(("name", "least", "most"), [("gptq_int8", 0.004, 0.015), ("gptq_int4", 0.05, 0.2)])
def test_a_rounded_model_passes_and_its_errors_are_told(
    name: str, least: float, most: float, weights: Tensors, tmp_path: Path
) -> None:
    scheme = scheme_of(name, 32)
    errors = compare(_folder(tmp_path / "a", weights), _folder(tmp_path / "b", _stored(weights, scheme)), scheme)
    assert len(errors) == 4
    assert all(least < error < most for error in errors)


def _random_expert(tensors: Tensors) -> str:
    tensors[GATE] = torch.randint(-127, 127, (96, 64), dtype=torch.int8)
    return f"{GATE} is off by"


def _swapped(tensors: Tensors) -> str:
    for end in ("", "_scale"):
        tensors[GATE + end], tensors[UP + end] = tensors[UP + end], tensors[GATE + end]
    return f"{GATE} is off by"


def _scales_of_other_rows(tensors: Tensors) -> str:
    tensors[f"{OUTPUT}_scale"] = tensors[f"{OUTPUT}_scale"].roll(1, 0)
    return f"{OUTPUT} is off by"


def _expert_left_out(tensors: Tensors) -> str:
    del tensors[f"{UP}_scale"]
    return f"{UP}_scale was not written"


def _broken_scale(tensors: Tensors) -> str:
    tensors[f"{QUERY}_scale"][3] = float("nan")
    return f"{QUERY}_scale is not finite"


def _router_changed(tensors: Tensors) -> str:
    tensors[ROUTER] = tensors[ROUTER] * 1.01
    return f"{ROUTER} is not to be quantised, and has changed"


def _norm_changed(tensors: Tensors) -> str:
    tensors[NORM] = tensors[NORM] * 2
    return f"{NORM} is not to be quantised"


FAULTS = (
    _random_expert, _swapped, _scales_of_other_rows, _expert_left_out, _broken_scale, _router_changed, _norm_changed,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_fault_is_found_and_named(fault: Callable[[Tensors], str], weights: Tensors, tmp_path: Path) -> None:
    scheme = scheme_of("gptq_int8")
    tensors = _stored(weights, scheme)
    message = fault(tensors)
    with pytest.raises(ExportRejected, match=message):
        compare(_folder(tmp_path / "a", weights), _folder(tmp_path / "b", tensors), scheme)


def test_a_scale_may_move_between_a_norm_and_its_weights_by_smoothing_only(weights: Tensors, tmp_path: Path) -> None:
    moved = torch.rand(64) + 0.5
    smooth = weights | {NORM: (weights[NORM] / moved).bfloat16(), QUERY: (weights[QUERY] * moved).bfloat16()}
    before = _folder(tmp_path / "a", weights)
    after = _folder(tmp_path / "b", _stored(smooth, scheme_of("gptq_int8")))
    assert max(compare(before, after, scheme_of("smoothquant_int8"))) < 0.02
    with pytest.raises(ExportRejected, match="input_layernorm"):
        compare(before, after, scheme_of("gptq_int8"))


def test_a_scale_that_left_the_norm_and_reached_no_weight_is_found(weights: Tensors, tmp_path: Path) -> None:
    lost = weights | {NORM: (weights[NORM] / (torch.rand(64) + 0.5)).bfloat16()}
    after = _folder(tmp_path / "b", _stored(lost, scheme_of("gptq_int8")))
    with pytest.raises(ExportRejected, match="q_proj"):
        compare(_folder(tmp_path / "a", weights), after, scheme_of("smoothquant_int8"))
