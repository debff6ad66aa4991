"""The third step: QLoRA. The base in NF4, LoRA in fp32, loss on answer tokens only; a killed run resumes."""

from __future__ import annotations

import json
import logging
import resource
import time
from pathlib import Path

import torch
from transformers import PrinterCallback

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.system.manifest import text_digest, verify_manifest
from training import checkpoints
from training.adapter import LoraShape, save_adapter
from training.chat.dataset import Collator, EncodedRows
from training.chat.encoding import Encoder, load_processor
from training.chat.positions import token_positions
from training.loss import AnswerLoss
from training.model import Adapted, attach_lora, load_quantized
from training.plots import plot_loss
from training.trainer import AdapterTrainer, Journal, arguments

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def finetune(config: Config, folder: Path, base: BaseSnapshot, data: Dataset) -> Adapter:
    """Train an adapter on the data set, from the newest whole checkpoint in the folder if there is one.

    Args:
        config: Sections `hardware`, `images`, `lora` and `train` are used.
        folder: The step's folder. Gets `adapter/`, `checkpoints/`, `history.jsonl` and `loss.png`.
        base: What is adapted.
        data: Its train split is learned, its eval split watched.

    Raises:
        TrainingFailed: Something is not quantised or not trainable as intended, or the loss is not a number.
        RunConflict: The checkpoints in the folder belong to another config, data set or base.
    """
    verify_manifest(data.path, data.digest)
    if config.hardware.device == "cpu":
        # Small products wait for their slowest thread: on all cores, any other process makes them much slower.
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    recipe = _recipe(config, base, data)
    checkpoint = checkpoints.newest_whole(folder / "checkpoints", recipe)
    model = load_quantized(base.path, DTYPES[config.train.precision], config.hardware.device)
    lora = config.lora
    adapted = attach_lora(model, lora.targets, lora.rank, lora.alpha, config.train.seed)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = _trainer(config, folder, base, data, AnswerLoss(model), adapted, recipe)
    seconds = _train(trainer, checkpoint)
    digest = save_adapter(adapted, LoraShape(lora.targets, lora.rank, lora.alpha), base.digest, folder / "adapter")
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    plot_loss(history, folder / "loss.png")
    losses = [event["loss"] for event in history if "loss" in event]
    tail = losses[-max(1, len(losses) // 10) :]
    return Adapter(
        path=folder / "adapter",
        digest=digest,
        base_digest=base.digest,
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        steps=config.train.steps,
        loss=sum(tail) / len(tail),
        eval_loss=[event["eval_loss"] for event in history if "eval_loss" in event][-1],
        tokens_per_second=trainer.tokens / seconds,
        peak_gib=_peak_gib(config.hardware.device),
    )


def _recipe(config: Config, base: BaseSnapshot, data: Dataset) -> str:
    """Digest of everything that decides the weights: checkpoints of another recipe are not continued."""
    sections = (config.lora, config.train, config.images, config.hardware)
    return text_digest(*(section.model_dump_json() for section in sections), base.digest, data.digest)


def _trainer(
    config: Config,
    folder: Path,
    base: BaseSnapshot,
    data: Dataset,
    objective: AnswerLoss,
    adapted: dict[str, Adapted],
    recipe: str,
) -> AdapterTrainer:
    encoder = Encoder(load_processor(base.path, config.images.min_pixels, config.images.max_pixels))
    rows = {
        split: EncodedRows(data.path, split, encoder, lambda row: token_positions(objective.model, row))
        for split in ("train", "eval")
    }
    journal = Journal(folder / "history.jsonl", recipe, config.train.keep_checkpoints)
    pad = encoder.tokenizer.pad_token_id
    trainer = AdapterTrainer(
        adapted,
        pad,
        model=objective,
        args=arguments(config.train, folder / "checkpoints", config.hardware.device),
        data_collator=Collator(pad),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        callbacks=[journal],
    )
    journal.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # the journal shows the same, better
    return trainer


def _train(trainer: AdapterTrainer, checkpoint: Path | None) -> float:
    """Train, which evaluates and saves at the last step too, and return the seconds it took."""
    began = time.monotonic()
    if checkpoint:
        log.info("resuming from %s", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return time.monotonic() - began


def _peak_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
