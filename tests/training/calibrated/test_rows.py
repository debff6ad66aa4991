"""Rows for calibration: those of training, encoded as in training, all of one kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.artifacts import Dataset
from pipelines.errors import BadInput
from training.calibrated.rows import write_rows
from training.chat.encoding import Encoder


def _rows(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted(folder.glob("*.safetensors"))]


def _write(folder: Path, *rows: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"messages": [{"role": "user", "content": row}, ANSWER]}) for row in rows]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    Image.new("RGB", (64, 96)).save(folder / "a.png")
    return folder


ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "The digit is 7."}]}
TEXT = [{"type": "text", "text": "Which digit is written here?"}]
PICTURE = [{"type": "image", "image": "a.png"}, *TEXT]


def test_a_row_is_what_the_model_is_trained_on(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    count = write_rows(data.path, encoder, 10_000, 0, tmp_path / "rows")
    rows = _rows(tmp_path / "rows")
    assert count == len(rows) == data.rows["train"]
    lines = [json.loads(line) for line in (data.path / "train.jsonl").read_text().splitlines()]
    wanted = set()
    for line in lines:
        paths = [part["image"] for message in line["messages"] for part in message["content"] if "image" in part]
        images = [Image.open(data.path / path).convert("RGB") for path in paths]
        wanted.add(tuple(encoder.encode(line["messages"], images).input_ids.tolist()))
    assert {tuple(row["input_ids"][0].tolist()) for row in rows} == wanted
    assert all(row["pixel_values"].dtype == torch.bfloat16 for row in rows)
    assert all(4 * row["mm_token_type_ids"].sum() == row["image_grid_thw"].prod(-1).sum() for row in rows)


def test_a_sample_is_as_large_as_asked_and_decided_by_the_seed(data: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    samples = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert write_rows(data.path, encoder, 6, seed, tmp_path / name) == 6
        samples[name] = [row["pixel_values"].float().sum().item() for row in _rows(tmp_path / name)]
    assert samples["a"] == samples["b"] != samples["c"]


def test_rows_without_an_image_are_left_out_where_others_have_one(encoder: Encoder, tmp_path: Path) -> None:
    assert write_rows(_write(tmp_path / "data", TEXT, PICTURE, TEXT), encoder, 8, 0, tmp_path / "rows") == 1
    assert "pixel_values" in _rows(tmp_path / "rows")[0]


def test_a_data_set_of_text_is_calibrated_on_text(encoder: Encoder, tmp_path: Path) -> None:
    assert write_rows(_write(tmp_path / "data", TEXT, TEXT), encoder, 8, 0, tmp_path / "rows") == 2
    assert "pixel_values" not in _rows(tmp_path / "rows")[0]


def test_a_split_without_rows_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no training row to calibrate on"):
        write_rows(_write(tmp_path / "data"), encoder, 8, 0, tmp_path / "rows")
