"""Micro-batches: within the budget, as few as can be, every row once, and the loss of the whole step."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from pipelines.artifacts import BaseSnapshot, Dataset
from training.chat.batches import MicroBatch, Once, Stack, Steps, cut
from training.chat.dataset import EncodedRows, Sample
from training.chat.encoding import IGNORE, Encoder
from training.chat.positions import token_positions
from training.loss import AnswerLoss

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=12).map(lambda lengths: sorted(lengths, reverse=True))


@given(LENGTHS, st.integers(1, 120))
def test_runs_hold_every_row_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    runs = cut(lengths, budget)
    assert list(chain.from_iterable(runs)) == list(range(len(lengths)))
    assert all(len(run) * lengths[run.start] <= budget or len(run) == 1 for run in runs)


@given(LENGTHS, st.integers(50, 120))
def test_there_are_as_few_runs_as_can_be(lengths: list[int], budget: int) -> None:
    fewest = [0] + [len(lengths)] * len(lengths)
    for end in range(1, len(lengths) + 1):
        fitting = (begin for begin in range(end) if (end - begin) * lengths[begin] <= budget)
        fewest[end] = min(fewest[begin] + 1 for begin in fitting)
    assert len(cut(lengths, budget)) == fewest[-1]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 8), st.integers(0, 3))
def test_steps_are_full_and_every_pass_holds_every_row_once(rows: int, size: int, steps: int, seed: int) -> None:
    order = list(Steps(rows, size, steps, seed, slice(None)))
    assert [len(step) for step in order] == [size] * steps
    flat = list(chain.from_iterable(order))
    passes = [flat[begin : begin + rows] for begin in range(0, len(flat) // rows * rows, rows)]
    assert all(sorted(one) == list(range(rows)) for one in passes)


def test_the_order_follows_from_the_seed_and_changes_with_each_pass() -> None:
    first = list(Steps(50, 50, 2, 0, slice(None)))
    assert list(Steps(50, 50, 2, 0, slice(None))) == first
    assert first[0] != first[1]
    assert next(iter(Steps(50, 50, 2, 1, slice(None)))) not in first


@given(st.integers(1, 9), st.integers(3, 12), st.integers(1, 3))
def test_processes_share_each_step_and_each_evaluation(rows: int, size: int, processes: int) -> None:
    whole = Steps(rows, size, 4, 0, slice(None))
    parts = [Steps(rows, size, 4, 0, slice(rank, None, processes)) for rank in range(processes)]
    for step, *shares in zip(whole, *parts, strict=True):
        assert sorted(chain.from_iterable(shares)) == sorted(step)
        assert all(shares)
    evaluated = [Once(rows, 2, slice(rank, None, processes)) for rank in range(processes)]
    assert sorted(chain.from_iterable(chain.from_iterable(evaluated))) == list(range(rows))
    assert [len(once) for once in evaluated] == [len(list(once)) for once in evaluated]


@pytest.fixture(scope="module")
def objective(moe_base: BaseSnapshot) -> AnswerLoss:
    model = AutoModelForImageTextToText.from_pretrained(moe_base.path, dtype=torch.float32).eval()
    return AnswerLoss(model.requires_grad_(False))


@pytest.fixture(scope="module")
def samples(data: Dataset, encoder: Encoder, objective: AnswerLoss) -> list[Sample]:
    """Ten rows: some with an image, some without, one with two."""
    rows = EncodedRows(data.path, "train", encoder, lambda row: token_positions(objective.model, row))
    text = _sample(encoder, objective, [{"type": "text", "text": "Which digit? " * 9}], [])
    image = rows.rows[0]["messages"][0]["content"]
    picture = next(part["image"] for part in image if part["type"] == "image")
    return [*(rows[i] for i in range(7)), text, text, _two_images(data.path / picture, encoder, objective)]


def _sample(encoder: Encoder, objective: AnswerLoss, content: list[dict[str, str]], images: list[object]) -> Sample:
    answer = [{"type": "text", "text": "The digit is 7."}]
    row = encoder.encode([{"role": "user", "content": content}, {"role": "assistant", "content": answer}], images)
    return Sample(row, token_positions(objective.model, row))


def _two_images(path: Path, encoder: Encoder, objective: AnswerLoss) -> Sample:
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which digit is written here?"}]
    return _sample(encoder, objective, content, [image, image.resize((96, 64))])


@pytest.mark.parametrize("budget", [1, 80, 130, 10_000])
def test_the_loss_of_a_step_is_that_of_the_unsplit_batch(
    budget: int, objective: AnswerLoss, samples: list[Sample]
) -> None:
    (whole,) = Stack(0, 10**6)(samples)
    parts = Stack(0, budget)(samples)
    items = whole.answer_tokens
    assert sum(part.answer_tokens for part in parts) == items
    with torch.no_grad():
        expected = objective(**whole.inputs)
        split = sum(objective(**part.inputs, items=items) for part in parts)
    torch.testing.assert_close(split, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 80, 130])
def test_a_batch_that_is_cut_later_is_what_would_have_been_stacked(budget: int, samples: list[Sample]) -> None:
    (whole,) = Stack(0, 10**6)(samples)
    parts, expected = whole.within(budget), Stack(0, budget)(samples)
    assert [(part.lengths, part.images) for part in parts] == [(part.lengths, part.images) for part in expected]
    for part, stacked in zip(parts, expected, strict=True):
        assert part.inputs.keys() == stacked.inputs.keys()
        assert all(torch.equal(part.inputs[name], tensor) for name, tensor in stacked.inputs.items())


def test_padding_is_what_the_area_holds_beside_the_tokens(samples: list[Sample]) -> None:
    (whole,) = Stack(0, 10**6)(samples)
    assert whole.tokens == sum(sample.tokens for sample in samples)
    assert whole.area == whole.inputs["input_ids"].numel()
    assert whole.answer_tokens == sum(int((sample.row.labels != IGNORE).sum()) for sample in samples)
    assert isinstance(whole.to(torch.device("cpu")), MicroBatch)


def test_loading_processes_hand_over_the_same_steps_and_steps_can_be_skipped(
    data: Dataset, encoder: Encoder, objective: AnswerLoss
) -> None:
    rows = EncodedRows(data.path, "train", encoder, lambda row: token_positions(objective.model, row))
    order, stack = Steps(len(rows), 4, 5, 0, slice(None)), Stack(0, 64)
    here = list(DataLoader(rows, batch_sampler=order, collate_fn=stack))
    others = list(skip_first_batches(DataLoader(rows, batch_sampler=order, collate_fn=stack, num_workers=2), 2))
    assert len(others) == 3
    for batch, expected in zip(chain.from_iterable(others), chain.from_iterable(here[2:]), strict=True):
        assert batch.lengths == expected.lengths
        assert all(torch.equal(batch.inputs[name], tensor) for name, tensor in expected.inputs.items())
