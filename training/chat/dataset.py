"""A split of the data set as PyTorch reads it: rows encoded once and kept, as far as memory allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from training.chat.encoding import Encoded, Encoder

KEEP_BYTES = 2 * 2**30
"""Of encoded rows of a split; what is beyond is read and encoded anew each time."""


@dataclass(frozen=True)
class Sample:
    """A row and where its tokens stand."""

    row: Encoded
    positions: torch.Tensor
    """[3, tokens]: in time, height and width."""

    @property
    def tokens(self) -> int:
        """All of them, visual ones included."""
        return len(self.row.input_ids)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        tensors = (self.positions, self.row.input_ids, self.row.labels, self.row.image_mask, self.row.pixel_values)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class EncodedRows(Dataset[Sample]):
    """The rows of one split."""

    def __init__(
        self,
        folder: Path,
        split: str,
        encoder: Encoder,
        positions: Callable[[Encoded], torch.Tensor],
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Read the rows, not yet the images.

        Args:
            folder: A prepared data set.
            split: `train`, `eval` or `test`.
            encoder: Of the base model.
            positions: The model's own rule for where tokens stand.
            keep_bytes: Memory for encoded rows; every loading process has its own.
        """
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.folder, self.encoder, self.positions = folder, encoder, positions
        self.kept: dict[int, Sample] = {}
        self.kept_bytes, self.keep_bytes = 0, keep_bytes

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """One row, encoded."""
        if index in self.kept:
            return self.kept[index]
        sample = self._encode(self.rows[index]["messages"])
        if self.kept_bytes + sample.nbytes <= self.keep_bytes:
            self.kept[index] = sample
            self.kept_bytes += sample.nbytes
        return sample

    def _encode(self, messages: Sequence[dict[str, Any]]) -> Sample:
        paths = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        row = self.encoder.encode(messages, [_load(self.folder / path) for path in paths])
        return Sample(row, self.positions(row))


def _load(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
