"""Token-budget batches: a step is a fixed number of rows, cut into micro-batches of at most so many tokens.

The budget decides memory and speed, never the result: a step's loss is divided by the answer tokens of all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from math import ceil

import torch
from torch.utils.data import Sampler

from training.chat.dataset import Sample
from training.chat.encoding import IGNORE, collate


def cut(lengths: Sequence[int], budget: int) -> list[range]:
    """Cut rows into runs whose number times the longest is at most the budget, as few runs as can be.

    Args:
        lengths: Tokens of each row, the longest first: what needs most memory is tried first.
        budget: Tokens with padding. A row that exceeds it makes a run of its own.
    """
    runs, begin = [], 0
    while begin < len(lengths):
        end = min(begin + max(1, budget // lengths[begin]), len(lengths))
        runs.append(range(begin, end))
        begin = end
    return runs


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    inputs: dict[str, torch.Tensor]
    """What AnswerLoss takes, from `encoding.collate`."""

    lengths: tuple[int, ...]
    """Tokens of each row, the longest first."""

    images: tuple[int, ...]
    """Images of each row."""

    @classmethod
    def of(cls, samples: Sequence[Sample], pad: int) -> MicroBatch:
        """Stack samples that stand in order, the longest first."""
        rows = [sample.row for sample in samples]
        return cls(
            inputs=collate(rows, [sample.positions for sample in samples], pad),
            lengths=tuple(sample.tokens for sample in samples),
            images=tuple(0 if row.image_grid_thw is None else len(row.image_grid_thw) for row in rows),
        )

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(self.lengths)

    @property
    def area(self) -> int:
        """Tokens with padding: what the budget limits."""
        return len(self.lengths) * self.lengths[0]

    @property
    def answer_tokens(self) -> int:
        """Tokens that the loss is over."""
        return int((self.inputs["labels"][:, 1:] != IGNORE).sum())

    def within(self, budget: int) -> list[MicroBatch]:
        """The same rows in micro-batches that fit a budget."""
        return [self] if self.area <= budget else [self._part(run) for run in cut(self.lengths, budget)]

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on a device; the host does not wait for it if this one is pinned."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return MicroBatch(moved, self.lengths, self.images)

    def pin_memory(self) -> MicroBatch:
        """A copy in pinned memory; DataLoader asks for it."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return MicroBatch(pinned, self.lengths, self.images)

    def _part(self, run: range) -> MicroBatch:
        rows, tokens = slice(run.start, run.stop), slice(self.lengths[run.start])
        inputs = {name: self.inputs[name][rows, tokens] for name in ("input_ids", "labels")}
        inputs["position_ids"] = self.inputs["position_ids"][:, rows, tokens]
        first, last = sum(self.images[: run.start]), sum(self.images[: run.stop])
        if last > first:
            grid = self.inputs["image_grid_thw"]
            patches = [0, *grid.prod(-1).cumsum(0).tolist()]
            inputs["pixel_values"] = self.inputs["pixel_values"][patches[first] : patches[last]]
            inputs["image_grid_thw"] = grid[first:last]
        return MicroBatch(inputs, self.lengths[rows], self.images[rows])


@dataclass(frozen=True)
class Stack:
    """DataLoader's collate function: the rows of a step as micro-batches."""

    pad: int
    """The padding token."""

    budget: int
    """Tokens of a micro-batch, with padding."""

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """Cut first, then stack each part, so that no part is padded to the longest row of the step."""
        ordered = sorted(samples, key=lambda sample: sample.tokens, reverse=True)
        runs = cut([sample.tokens for sample in ordered], self.budget)
        return [MicroBatch.of(ordered[run.start : run.stop], self.pad) for run in runs]


class Steps(Sampler[list[int]]):
    """The rows of every training step: shuffled anew for each pass, one pass flowing into the next.

    One long epoch for Trainer, so that to resume is to skip as many steps as are done.
    """

    def __init__(self, rows: int, batch_size: int, steps: int, seed: int, share: slice) -> None:
        """Describe a run.

        Args:
            rows: Of the data set.
            batch_size: Rows per step, of all processes together.
            steps: Of the run.
            seed: Decides the order.
            share: Which of a step's rows are this process's own, such as `slice(rank, None, processes)`.
        """
        self.rows, self.batch_size, self.steps, self.seed, self.share = rows, batch_size, steps, seed, share

    def __len__(self) -> int:
        """Steps."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers, a step at a time."""
        order = chain.from_iterable(map(self._pass, count()))
        for _ in range(self.steps):
            yield list(islice(order, self.batch_size))[self.share]

    def _pass(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        return order


class Once(Sampler[list[int]]):
    """Every row once, in order: for an evaluation."""

    def __init__(self, rows: int, batch_size: int, share: slice) -> None:
        """See `Steps`."""
        self.order = range(rows)[share]
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches."""
        return ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Row numbers, a batch at a time."""
        for begin in range(0, len(self.order), self.batch_size):
            yield list(self.order[begin : begin + self.batch_size])
