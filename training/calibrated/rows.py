"""What a calibrated scheme sees: training rows as the model reads them, pictures included, one file each."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.errors import BadInput
from training.chat.encoding import Encoded, Encoder


def write_rows(data: Path, encoder: Encoder, count: int, seed: int, folder: Path) -> int:
    """Encode a sample of the training split as fine-tuning encodes it, and return how many rows it has.

    llm-compressor traces the model once, with the first row: rows without an image would take another way through it.
    They are left out, unless the data set has no image at all.

    Args:
        data: A prepared data set.
        encoder: Of the model.
        count: Rows wanted; fewer if there are no more.
        seed: Decides the sample.
        folder: Gets one safetensors file a row, named for its place in the sample.

    Raises:
        BadInput: The training split is empty.
    """
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    usable = [row for row in rows if _images(row)] or rows
    if not usable:
        raise BadInput(f"{data}: no training row to calibrate on; choose an export.scheme without calibration")
    folder.mkdir(parents=True)
    sample = random.Random(seed).sample(usable, min(count, len(usable)))
    for place, messages in enumerate(sample):
        encoded = encoder.encode(messages, [_load(data / path) for path in _images(messages)])
        save_file(_arguments(encoded), folder / f"{place:05d}.safetensors")
    return len(sample)


def _images(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def _load(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _arguments(row: Encoded) -> dict[str, torch.Tensor]:
    """A row as the model's forward takes it; pixels in bf16, which is what its first layer makes of them."""
    arguments = {"input_ids": row.input_ids[None], "mm_token_type_ids": row.image_mask[None]}
    if row.pixel_values is not None and row.image_grid_thw is not None:
        arguments |= {"pixel_values": row.pixel_values.bfloat16(), "image_grid_thw": row.image_grid_thw}
    return arguments
