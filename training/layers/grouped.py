"""Products of tokens sorted by expert with a matrix per expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Routing:
    """Which rows go to which expert. A row is one token for one of its experts; rows are sorted by expert."""

    tokens: torch.Tensor
    """[rows], int64: the token of each row."""

    places: torch.Tensor
    """[tokens, experts per token], int64: where a token's rows are."""

    order: torch.Tensor
    """[rows], int64: a row's place in the flattened choices."""

    ends: torch.Tensor
    """[experts], int32: where each expert's rows end."""


def route(chosen: torch.Tensor, experts: int) -> Routing:
    """Sort the choices by expert, those of one expert in the order of the tokens.

    Args:
        chosen: [tokens, experts per token], int64.
        experts: How many there are.
    """
    per_token = chosen.shape[1]
    # In the smallest type that holds them: a radix sort makes a pass for every byte.
    flat = chosen.flatten().to(torch.int16)
    by_expert, order = flat.sort(stable=True)
    everyone = torch.arange(experts, dtype=torch.int16, device=chosen.device)
    # Not bincount: it makes the CPU wait for the GPU.
    ends = torch.searchsorted(by_expert, everyone, right=True, out_int32=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return Routing(order // per_token, places.view(chosen.shape), order, ends)


def grouped_product(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply each expert's rows with its matrix.

    Args:
        rows: [rows, in].
        matrices: [experts, in, out], of the same dtype.
        ends: See Routing.

    Returns:
        [rows, out].
    """
    if rows.is_cuda and rows.dtype == torch.bfloat16:  # the only type that the kernel takes
        return functional.grouped_mm(rows, matrices, offs=ends)
    groups = rows.tensor_split(ends[:-1].tolist())
    return torch.cat([group @ matrix for group, matrix in zip(groups, matrices, strict=True)])


def grouped_outer(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Sum over each expert's rows of the outer products: how weights get their gradients.

    Args:
        left: [rows, a].
        right: [rows, b], of the same dtype.
        ends: See Routing.

    Returns:
        [experts, a, b].
    """
    if left.is_cuda and left.dtype == torch.bfloat16:
        return functional.grouped_mm(left.T, right, offs=ends)
    cuts = ends[:-1].tolist()
    pairs = zip(left.tensor_split(cuts), right.tensor_split(cuts), strict=True)
    return torch.stack([a.T @ b for a, b in pairs])
