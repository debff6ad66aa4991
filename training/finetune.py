"""The third step: QLoRA. The base in NF4, LoRA in fp32, loss on answer tokens only; a killed run resumes.

With `hardware.gpus` above one, this runs in as many processes at once (pipelines.launch starts them): each holds the
base and takes its share of every step's rows, and the first of them writes.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, TrainingArguments

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.budget.plan import require_training_fit
from pipelines.config import Config
from pipelines.errors import MachineUnfit, OutOfMemory
from pipelines.hardware import Hardware
from pipelines.system.manifest import manifest_digest, text_digest, verify_manifest
from training.adapter import LoraShape, read_weights, save_adapter
from training.allocator import Memory, cap
from training.chat.dataset import KEEP_BYTES, EncodedRows
from training.chat.encoding import Encoder, load_processor
from training.chat.positions import token_positions
from training.layers.recompute import checkpoint_layers
from training.loop import checkpoints
from training.loop.journal import Event, Journal, best_step, evaluations, exhausted, read_history
from training.loop.trainer import AdapterTrainer, arguments, remembered
from training.loss import AnswerLoss
from training.model import Adapted, attach_lora, load_quantized
from training.plots import plot_loss

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
        OutOfMemory: The device is too small; names what to lower.
        RunConflict: The checkpoints in the folder belong to another config, data set or base.
        MachineUnfit: There are fewer devices than the config asks for, or less memory than it needs.
    """
    _require_devices(config.hardware)
    require_training_fit(config, base.path)
    verify_manifest(data.path, data.digest)
    if config.hardware.device == "cpu":
        # Small products wait for their slowest thread: on all cores, any other process makes them much slower.
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    settings = arguments(config.train, folder / "checkpoints", config.hardware.device)
    cap(settings.device, config.hardware.memory_gib)
    memory = Memory(settings.device)
    recipe = _recipe(config, base, data)
    checkpoint = _newest(folder / "checkpoints", recipe, settings)
    model = load_quantized(base.path, DTYPES[config.train.precision], config.hardware.device)
    adapted = attach_lora(model, config.lora.targets, config.lora.rank, config.lora.alpha, config.train.seed)
    if config.train.activations != "keep":
        checkpoint_layers(model, offload=config.train.activations == "offload")
    memory.enter("train")
    trainer = _trainer(config, folder, base, data, AnswerLoss(model), adapted, memory, settings, recipe)
    _train(trainer, checkpoint)
    history = read_history(folder / "history.jsonl")
    if settings.should_save:
        _hand_on(config, folder, base, adapted, history)
    trainer.accelerator.wait_for_everyone()
    return _artifact(config, folder, base, trainer, history)


def _require_devices(hardware: Hardware) -> None:
    if hardware.device == "cuda" and torch.cuda.device_count() < hardware.gpus:
        raise MachineUnfit(
            f"hardware.gpus is {hardware.gpus} and CUDA shows {torch.cuda.device_count()}; choose another hardware "
            f"profile, or see CUDA_VISIBLE_DEVICES and the driver"
        )


def _recipe(config: Config, base: BaseSnapshot, data: Dataset) -> str:
    """Digest of everything that decides the weights: checkpoints of another recipe are not continued."""
    sections = (config.lora, config.train, config.images, config.hardware)
    return text_digest(*(section.model_dump_json() for section in sections), base.digest, data.digest)


def _newest(folder: Path, recipe: str, settings: TrainingArguments) -> Path | None:
    """The checkpoint to go on from: the first process looks, as it deletes what is damaged, and tells the others."""
    found = [checkpoints.newest_whole(folder, recipe) if settings.should_save else None]
    return broadcast_object_list(found)[0]


def _trainer(
    config: Config,
    folder: Path,
    base: BaseSnapshot,
    data: Dataset,
    objective: AnswerLoss,
    adapted: dict[str, Adapted],
    memory: Memory,
    settings: TrainingArguments,
    recipe: str,
) -> AdapterTrainer:
    encoder = Encoder(load_processor(base.path, config.images.min_pixels, config.images.max_pixels))
    keep_bytes = KEEP_BYTES // max(1, settings.dataloader_num_workers)
    rows = {
        split: EncodedRows(data.path, split, encoder, lambda row: token_positions(objective.model, row), keep_bytes)
        for split in ("train", "eval")
    }
    trainer = AdapterTrainer(
        adapted,
        config.train,
        encoder.tokenizer.pad_token_id,
        memory,
        model=objective,
        args=settings,
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        callbacks=[Journal(folder / "history.jsonl", recipe, config.train)],
    )
    trainer.remove_callback(PrinterCallback)  # the journal shows the same, better
    return trainer


def _train(trainer: AdapterTrainer, checkpoint: Path | None) -> None:
    """Train, which evaluates and saves at the last step too; not again if an earlier attempt stopped early."""
    if checkpoint:
        log.info("resuming from %s", checkpoint.name)
        if exhausted(evaluations(remembered(checkpoint)), trainer.train_config.patience):
            trainer._load_from_checkpoint(str(checkpoint))
            return
    gc.freeze()  # what loading left is here to stay: half a million objects that need not be looked at again and again
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"out of memory outside of the model, where the optimizer's states are made: {error}; lower lora.rank, or "
            f"set train.optimizer to paged_adamw_8bit"
        ) from error


def _hand_on(
    config: Config, folder: Path, base: BaseSnapshot, adapted: dict[str, Adapted], history: list[Event]
) -> None:
    """Write the adapter, of the best step if the config says so, and the picture of its losses."""
    if config.train.keep_best:
        read_weights(adapted, checkpoints.path_of(folder / "checkpoints", best_step(evaluations(history))))
    shape = LoraShape(config.lora.targets, config.lora.rank, config.lora.alpha)
    save_adapter(adapted, shape, base.digest, folder / "adapter")
    plot_loss(history, folder / "loss.png")


def _artifact(
    config: Config, folder: Path, base: BaseSnapshot, trainer: AdapterTrainer, history: list[Event]
) -> Adapter:
    trained = [event for event in history if "loss" in event]
    tail = trained[-max(1, len(trained) // 10) :]
    tokens = sum(event["tokens"] for event in trained)
    losses = evaluations(history)
    best = best_step(losses)
    trainer.memory.look()
    return Adapter(
        path=folder / "adapter",
        digest=manifest_digest(folder / "adapter"),
        base_digest=base.digest,
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        steps=trained[-1]["step"],
        stopped_early=trained[-1]["step"] < config.train.steps,
        best_step=best,
        loss=sum(event["loss"] for event in tail) / len(tail),
        eval_loss=losses[best] if config.train.keep_best else list(losses.values())[-1],
        tokens_per_second=tokens / sum(event["tokens"] / event["tokens_per_second"] for event in trained),
        padding_share=1 - tokens / sum(event["tokens"] / (1 - event["padding"]) for event in trained),
        tokens_per_batch=trainer.tokens_per_batch,
        peak_gib=max(peak.allocated_gib for peak in trainer.memory.peaks.values()),
        memory={str(phase): peak for phase, peak in trainer.memory.peaks.items()},
    )
