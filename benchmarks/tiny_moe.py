"""The embedded default trained for real on one device: prepare, finetune, adapter, right answers by split and slice.

Shows that a GPU learns what a CPU learns. Right answers are the trainer's own (every token of the answer is the most
likely one), so that no engine is needed.

usage: python benchmarks/tiny_moe.py WORK_FOLDER [--device cuda] [--base FOLDER_WITH_A_BUILT_BASE]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT
from pipelines.statistics import wilson
from training.adapter import read_weights
from training.chat.dataset import EncodedRows
from training.chat.encoding import Encoder, collate, load_processor
from training.chat.positions import token_positions
from training.data import prepare
from training.download import download
from training.finetune import DTYPES, finetune
from training.loss import AnswerLoss, exact_matches
from training.model import attach_lora, load_quantized

CARD = {"name": "card", "device": "cuda", "capability": [9, 0], "memory_gib": 48}
TOGETHER = 32
TRAIN = {"optimizer": "paged_adamw_8bit", "precision": "bf16", "activations": "recompute"}


def configured(device: str, base: Path | None) -> Config:
    """The embedded default; on a card, as a real model is trained there."""
    overrides = [f"model.source=file://{base.resolve()}"] if base else []
    sections = load_config(ROOT / "configs" / "smoke.yaml", tuple(overrides)).model_dump(mode="json")
    if device == "cuda":
        sections |= {"hardware": CARD, "train": sections["train"] | TRAIN}
    return Config.model_validate(sections)


@torch.no_grad()
def right_answers(config: Config, base: BaseSnapshot, data: Dataset, adapter: Adapter | None) -> dict[str, list[bool]]:
    """Of the sealed test split, by slice."""
    model = load_quantized(base.path, DTYPES[config.train.precision], config.hardware.device).eval()
    adapted = attach_lora(model, config.lora.targets, config.lora.rank, config.lora.alpha, seed=0)
    if adapter:
        read_weights(adapted, adapter.path)
    encoder = Encoder(load_processor(base.path, config.images.min_pixels, config.images.max_pixels))
    rows = EncodedRows(data.path, "test", encoder, lambda row: token_positions(model, row), 2**30)
    right = defaultdict(list)
    for begin in range(0, len(rows), TOGETHER):
        places = range(begin, min(begin + TOGETHER, len(rows)))
        samples = [rows[i] for i in places]
        batch = collate([s.row for s in samples], [s.positions for s in samples], encoder.tokenizer.pad_token_id)
        matches = exact_matches(AnswerLoss(model), {name: tensor.to(model.device) for name, tensor in batch.items()})
        for i, match in zip(places, matches.tolist(), strict=True):
            right[rows.rows[i]["slice"]].append(match)
    return dict(right)


def main() -> None:
    """Run the steps and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--base", type=Path)
    options = parser.parse_args()
    config = configured(options.device, options.base)
    folders = {step: options.folder / step for step in ("download", "prepare", "finetune")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    base = download(config, folders["download"])
    data = prepare(config, folders["prepare"], base)
    adapter = finetune(config, folders["finetune"], base, data)
    print(
        f"{options.device}: {adapter.steps} steps, evaluation loss {adapter.eval_loss:.4f} at step {adapter.best_step}"
    )
    print(f"{adapter.tokens_per_second:,.0f} tokens/s, peak {adapter.peak_gib:.2f} GiB, base {base.digest[:12]}")
    print("| slice | base | adapted | interval |\n|---|---|---|---|")
    before, after = (right_answers(config, base, data, one) for one in (None, adapter))
    for name, right in after.items():
        low, high = wilson(sum(right), len(right))
        share = sum(right) / len(right)
        print(
            f"| {name} | {sum(before[name]) / len(right):.1%} | {share:.1%} of {len(right)} | {low:.1%} to {high:.1%} |"
        )
    print("RESULT", json.dumps({name: [sum(right), len(right)] for name, right in after.items()}))


if __name__ == "__main__":
    main()
