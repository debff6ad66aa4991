"""The loss is transformers' own, and exact match is what greedy decoding writes."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText

from pipelines.artifacts import BaseSnapshot, Dataset
from training.chat.dataset import EncodedRows, Sample
from training.chat.encoding import IGNORE, Encoded, Encoder, collate
from training.chat.positions import token_positions
from training.loss import AnswerLoss, exact_matches


def _setup(base: BaseSnapshot, data: Dataset, encoder: Encoder) -> tuple[AnswerLoss, list[Sample]]:
    model = AutoModelForImageTextToText.from_pretrained(base.path, dtype=torch.float32).eval().requires_grad_(False)
    rows = EncodedRows(data.path, "test", encoder, lambda row: token_positions(model, row))
    return AnswerLoss(model), [rows[i] for i in range(len(rows))]


def _batch(samples: list[Sample]) -> dict[str, torch.Tensor]:
    return collate([sample.row for sample in samples], [sample.positions for sample in samples], pad=0)


def test_the_loss_is_the_stock_one(any_base: BaseSnapshot, data: Dataset, encoder: Encoder) -> None:
    objective, samples = _setup(any_base, data, encoder)
    batch = _batch(samples)
    mask = torch.arange(batch["input_ids"].shape[1]) < torch.tensor([[len(s.row.input_ids)] for s in samples])
    visual = torch.nn.utils.rnn.pad_sequence([s.row.image_mask for s in samples], batch_first=True)
    with torch.no_grad():
        ours = objective(**batch)
        stock = objective.model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            attention_mask=mask.long(),
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            mm_token_type_ids=visual,
        ).loss
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


def test_exact_match_is_what_greedy_decoding_writes(moe_base: BaseSnapshot, data: Dataset, encoder: Encoder) -> None:
    objective, samples = _setup(moe_base, data, encoder)
    written = [_greedy(objective, sample) for sample in samples]
    # A base of a few steps answers nothing right: what it does write is made the right answer of every other row.
    pairs = list(zip(samples, written, strict=True))
    answers = [_relabel(sample, tokens) if i % 2 else sample for i, (sample, tokens) in enumerate(pairs)]
    matches = exact_matches(objective, _batch(answers))
    right = [sample.row.labels[sample.row.labels != IGNORE] for sample in answers]
    wanted = [torch.equal(answer, tokens) for answer, tokens in zip(right, written, strict=True)]
    assert matches.tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)


@torch.no_grad()
def _greedy(objective: AnswerLoss, sample: Sample) -> torch.Tensor:
    row = sample.row
    prompt = int((row.labels == IGNORE).sum())
    tokens: torch.Tensor = objective.model.generate(
        input_ids=row.input_ids[None, :prompt],
        pixel_values=row.pixel_values,
        image_grid_thw=row.image_grid_thw,
        mm_token_type_ids=row.image_mask[None, :prompt],
        max_new_tokens=len(row.input_ids) - prompt,
        do_sample=False,
    )
    return tokens[0, prompt:]


def _relabel(sample: Sample, tokens: torch.Tensor) -> Sample:
    """The same question with these tokens for the right answer."""
    row = sample.row
    prompt = int((row.labels == IGNORE).sum())
    length = prompt + len(tokens)
    ids = torch.cat([row.input_ids[:prompt], tokens])
    labels = torch.cat([row.labels[:prompt], tokens])
    encoded = Encoded(ids, labels, row.image_mask[:length], row.pixel_values, row.image_grid_thw)
    return Sample(encoded, sample.positions[:, :length])
