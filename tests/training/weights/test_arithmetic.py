"""The compiled passes and PyTorch give the same bits, which are those of the definitions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ExportRejected
from pipelines.schemes import SCHEMES, scheme_of
from training.int8 import Rounded, quantize
from training.merge import LowRank
from training.weights.arithmetic import Computed, OnDevice, OnProcessor
from training.weights.layout import Planned
from training.weights.pieces import Part, Piece
from training.weights.shards import Spec, Stored

ALL = {"int8": SCHEMES["int8_w8a8"], "group": scheme_of("int8_w8a16", 32), "int4": scheme_of("int4_w4a16", 32)}
ALL |= {"bf16": SCHEMES["bf16"]}


@dataclass(frozen=True)
class Case:
    """A matrix as it is stored, and its update."""

    piece: Piece
    stored: torch.Tensor
    update: LowRank | None


def case(out: int, width: int, *, transposed: bool, rank: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """A random one."""
    shape = (width, out) if transposed else (out, width)
    output = Spec("model.layers.0.mlp.experts.0.down_proj.weight", dtype, (out, width))
    source = Stored("model.layers.0.mlp.experts.down_proj", dtype, (1, *shape), Path("x"), 0)
    part = Part(Planned(output, source, source.name, 0, (0, out), transposed), 0, out)
    # Of small integers, whose products and sums are exact in fp32: BLAS sums in an order that depends on shapes.
    a, b = torch.randint(-8, 9, (rank, width)), torch.randint(-8, 9, (rank, out))
    update = LowRank(a.float(), b.float(), 2**-7) if rank else None
    return Case(Piece(source, 0, shape, transposed, (part,)), torch.randn(shape).to(dtype), update)


def _computed(case: Case, how: OnDevice | OnProcessor) -> dict[str, Computed]:
    return how.compute(case.piece, case.stored.clone(), case.update)


@settings(deadline=None, max_examples=40)
@given(
    out=st.integers(1, 40),
    groups=st.integers(1, 4),
    transposed=st.booleans(),
    rank=st.sampled_from([0, 1, 8]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_both_give_the_same_bits(
    out: int, groups: int, transposed: bool, rank: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    one = case(out, 32 * groups, transposed=transposed, rank=rank, dtype=dtype)
    fast, plain = _computed(one, OnProcessor(ALL)), _computed(one, OnDevice(ALL, "cpu"))
    for name in ALL:
        assert all(torch.equal(a, b) for a, b in zip(_bits(fast[name]), _bits(plain[name]), strict=True))
        assert (fast[name].error or 0.0) == pytest.approx(plain[name].error or 0.0, rel=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_result_is_the_rounding_of_the_rounded_sum(transposed: bool) -> None:
    one = case(24, 64, transposed=transposed, rank=4)
    assert one.update
    weight = one.stored.T if transposed else one.stored
    merged = (weight.float() + one.update.dense()).bfloat16()
    computed = _computed(one, OnProcessor(ALL))
    for name, scheme in ALL.items():
        wanted = Computed(quantize(merged, scheme) if scheme.bits else merged, None)
        assert all(torch.equal(a, b) for a, b in zip(_bits(computed[name]), _bits(wanted), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("how", [OnProcessor(ALL), OnDevice(ALL, "cpu")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float, how: OnDevice | OnProcessor) -> None:
    one = case(8, 32, transposed=True, rank=0)
    one.stored[3, 3] = value
    with pytest.raises(ExportRejected, match=r"experts\.0\.down_proj\.weight holds NaN or infinity"):
        _computed(one, how)


def test_a_row_of_zeros_keeps_a_scale_that_engines_take() -> None:
    one = case(8, 32, transposed=False, rank=0)
    one.stored[2] = 0
    rounded = _computed(one, OnProcessor(ALL))["int8"].matrix
    assert isinstance(rounded, Rounded)
    assert rounded.scale[2] > 0
    assert not rounded.steps[2].any()


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gpu_gives_the_same_bits(transposed: bool, rank: int) -> None:
    one = case(1536, 2048, transposed=transposed, rank=rank)
    gpu, cpu = _computed(one, OnDevice(ALL, "cuda")), _computed(one, OnProcessor(ALL))
    for name in ALL:
        assert all(torch.equal(a, b) for a, b in zip(_bits(gpu[name]), _bits(cpu[name]), strict=True))


def _bits(computed: Computed) -> tuple[torch.Tensor, ...]:
    matrix = computed.matrix
    return (matrix.steps, matrix.scale) if isinstance(matrix, Rounded) else (matrix,)
