"""Rows are encoded once and kept, as far as memory allows; the result is the same either way."""

from __future__ import annotations

import torch

from pipelines.artifacts import Dataset
from training.chat.dataset import EncodedRows
from training.chat.encoding import Encoded, Encoder


def _no_positions(row: Encoded) -> torch.Tensor:
    return torch.zeros(3, len(row.input_ids), dtype=torch.long)


def test_a_row_is_encoded_once(data: Dataset, encoder: Encoder) -> None:
    rows = EncodedRows(data.path, "train", encoder, _no_positions)
    assert len(rows) == data.rows["train"]
    assert rows[0] is rows[0]
    assert rows.kept_bytes == rows[0].nbytes > rows[0].row.input_ids.nbytes


def test_what_exceeds_the_memory_is_encoded_anew(data: Dataset, encoder: Encoder) -> None:
    ample = EncodedRows(data.path, "train", encoder, _no_positions)
    tight = EncodedRows(data.path, "train", encoder, _no_positions, keep_bytes=ample[0].nbytes)
    assert tight[0] is tight[0]
    assert tight[1] is not tight[1]
    assert torch.equal(tight[1].row.input_ids, ample[1].row.input_ids)
    assert tight.kept_bytes <= tight.keep_bytes
