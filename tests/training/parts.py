"""Parts that the tests of training are made of: small data sets, adapters, and steps that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config
from training.adapter import LoraShape, save_adapter
from training.builtin.drawings import draw_many
from training.model import Adapted, attach_lora, load_quantized

DIE = Path(__file__).with_name("die.py")

Configure = Callable[..., Config]


def write_source(folder: Path, counts: dict[str, int]) -> list[dict[str, object]]:
    """Write drawings as `data.jsonl` and images; returns the rows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for i, drawing in enumerate(draw_many(counts, seed=5)):
        drawing.image.save(folder / "images" / f"{i}.png")
        question = [{"type": "image", "image": f"images/{i}.png"}, {"type": "text", "text": drawing.question}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": drawing.answer}]
        rows.append({"id": str(i), "slice": drawing.slice, "messages": messages})
    write_rows(folder, rows)
    return rows


def requiring(*slices: str) -> str:
    """The override by which the gate judges these slices, as it must those of a test split."""
    return f"gate.requirements=[{', '.join(f'{{slice: {name}, margin: 0.1}}' for name in slices)}]"


def write_rows(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `data.jsonl`."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def adapted_model(base: BaseSnapshot, rank: int = 4) -> tuple[PreTrainedModel, dict[str, Adapted]]:
    """The base in NF4 with LoRA whose weights are random on both sides."""
    model = load_quantized(base.path, torch.float32, "cpu")
    adapted = attach_lora(model, "attention+experts", rank, 2.0 * rank, seed=1)
    with torch.no_grad():
        for module in adapted.values():
            module.b.normal_(std=0.02)
    return model, adapted


def store_adapter(adapted: dict[str, Adapted], base: BaseSnapshot, folder: Path, rank: int = 4) -> Adapter:
    """Save LoRA weights as the finetune step does."""
    digest = save_adapter(adapted, LoraShape("attention+experts", rank, 2.0 * rank), base.digest, folder)
    counts = ("trainable_parameters", "steps", "best_step", "tokens_per_batch")
    figures = ("loss", "eval_loss", "tokens_per_second", "padding_share", "peak_gib")
    facts = dict.fromkeys((*counts, *figures), 1)
    return Adapter(path=folder, digest=digest, base_digest=base.digest, stopped_early=False, memory={}, **facts)


def run_until_killed(
    where: str, at: int, step: str, config: Config, folder: Path, *inputs: BaseSnapshot | Dataset | Adapter
) -> None:
    """Run a step in another process that kills itself (SIGKILL) when `where` is called for the `at`-th time."""
    folder.mkdir(exist_ok=True)
    arguments = [config.model_dump_json(), *(artifact.model_dump_json() for artifact in inputs)]
    command = [sys.executable, str(DIE), where, str(at), step, str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.returncode == -9, result.stderr[-2000:]
