"""`builtin://digits`: 1,797 real handwritten digits as a chat data set on disk, and rows of older tasks beside them.

The scans are the UCI ones that scikit-learn ships. The old tasks are drawings of the kinds that the built-in base
models know: in the training split to keep them (`replay`), in the test split to see whether they were kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from training.builtin.drawings import DIGIT_QUESTION, SIZE, Drawing, digit_answer, draw_many

TEST_SCANS = 600
EVAL_SCANS = 150
GUARDS = {"printed": 200, "colours": 120, "shapes": 120}
"""Old tasks in the test split: enough for a 95 % bound within the margins of configs/smoke.yaml."""

REPLAY = {"printed": 0.6, "colours": 0.2, "shapes": 0.2}
"""Shares of the old tasks among replayed rows: printed digits are the ones that handwriting disturbs."""

REPLAY_SEED, GUARD_SEED = 20_000, 10_000
"""Apart from each other and from the base's, so that no test picture was ever trained on."""


def write_digits(folder: Path, *, replay: float, seed: int) -> None:
    """Write `data.jsonl` and `images/` into an empty folder.

    Args:
        replay: Rows of older tasks for each new row of the training split; 0 for none.
        seed: Decides the split and the drawings.
    """
    (folder / "images").mkdir()
    scans = _scans()
    train, evaluation, test = _split([s.answer for s in scans], seed)
    replayed = {name: round(share * replay * len(train)) for name, share in REPLAY.items()}
    rows = [
        *_rows(folder, "train", (scans[i] for i in train), "scan"),
        *_rows(folder, "train", draw_many(replayed, REPLAY_SEED + seed), "replay"),
        *_rows(folder, "eval", (scans[i] for i in evaluation), "scan"),
        *_rows(folder, "test", (scans[i] for i in test), "scan"),
        *_rows(folder, "test", draw_many(GUARDS, GUARD_SEED + seed), "guard"),
    ]
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _scans() -> list[Drawing]:
    """Every scan, dark on light, enlarged from 8 x 8."""
    bunch = load_digits()
    return [
        Drawing("digits", _enlarge(pixels), DIGIT_QUESTION, digit_answer(int(digit)))
        for pixels, digit in zip(bunch.images, bunch.target, strict=True)
    ]


def _enlarge(pixels: np.ndarray[Any, np.dtype[np.float64]]) -> Image.Image:
    grey = (255 - pixels * (255 / 16)).clip(0, 255).astype(np.uint8)  # 0 to 16 is paper to ink
    return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def _split(labels: list[str], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Indices of train, eval and test, each with every digit in equal shares."""
    rest, test = train_test_split(range(len(labels)), test_size=TEST_SCANS, random_state=seed, stratify=labels)
    train, evaluation = train_test_split(
        rest, test_size=EVAL_SCANS, random_state=seed, stratify=[labels[i] for i in rest]
    )
    return train, evaluation, test


def _rows(folder: Path, split: str, drawings: Iterable[Drawing], kind: str) -> list[dict[str, Any]]:
    rows = []
    for number, drawing in enumerate(drawings):
        name = f"{split}-{kind}-{number:05d}"
        drawing.image.save(folder / "images" / f"{name}.png")
        question = [{"type": "image", "image": f"images/{name}.png"}, {"type": "text", "text": drawing.question}]
        answer = [{"type": "text", "text": drawing.answer}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"id": name, "slice": drawing.slice, "split": split, "messages": messages})
    return rows
