"""The layout of experts is told by shape, and refused where shape cannot tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.errors import ExportRejected
from training.merge import ExpertShape
from training.weights.layout import expert_shape, plan
from training.weights.shards import Stored

SHAPE = ExpertShape(experts=2, hidden=6, width=4)
NAME = "model.layers.0.mlp.experts"


def _stored(name: str, *shape: int) -> Stored:
    return Stored(name, torch.bfloat16, shape, Path("x"), 0)


@pytest.mark.parametrize(("shapes", "transposed"), [(((2, 6, 8), (2, 4, 6)), True), (((2, 8, 6), (2, 6, 4)), False)])
def test_both_fused_layouts_become_a_matrix_per_projection(
    shapes: tuple[tuple[int, ...], ...], transposed: bool
) -> None:
    stacks = [_stored(f"{NAME}.{leaf}", *s) for leaf, s in zip(("gate_up_proj", "down_proj"), shapes, strict=True)]
    planned = plan(stacks, SHAPE)
    assert {one.output.name: one.output.shape for one in planned} == {
        f"{NAME}.{expert}.{part}_proj.weight": (6, 4) if part == "down" else (4, 6)
        for expert in range(2)
        for part in ("gate", "up", "down")
    }
    assert {one.transposed for one in planned} == {transposed}


def test_a_matrix_per_projection_stays_and_finds_its_update() -> None:
    [one] = plan([_stored(f"{NAME}.1.up_proj.weight", 4, 6)], SHAPE)
    assert (one.target, one.expert, one.rows) == (f"{NAME}.gate_up_proj", 1, slice(4, 8))
    assert not one.from_stack


def test_square_experts_are_refused() -> None:
    with pytest.raises(ExportRejected, match="square experts"):
        plan([_stored(f"{NAME}.gate_up_proj", 2, 8, 8)], ExpertShape(2, hidden=8, width=4))


def test_a_shape_that_fits_neither_is_refused() -> None:
    with pytest.raises(ExportRejected, match=r"neither \[2, 6, 8\] nor \[2, 8, 6\]"):
        plan([_stored(f"{NAME}.gate_up_proj", 2, 6, 7)], SHAPE)


def test_other_tensors_pass_as_they_are() -> None:
    [one] = plan([_stored("lm_head.weight", 9, 6)], SHAPE)
    assert (one.output.name, one.output.shape, one.target, one.expert) == (
        "lm_head.weight",
        (9, 6),
        "lm_head.weight",
        None,
    )


def test_widths_come_from_the_config() -> None:
    text = {"num_experts": 2, "hidden_size": 6, "moe_intermediate_size": 4}
    assert expert_shape({"text_config": text}) == expert_shape(text) == SHAPE
    assert expert_shape({"hidden_size": 6}) is None
