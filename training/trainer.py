"""transformers.Trainer for an adapter: saves the adapter alone, keeps a history, stops at a loss that is no number."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.config import Train
from pipelines.errors import TrainingFailed
from training import checkpoints
from training.adapter import read_weights, write_weights
from training.loss import AnswerLoss
from training.model import Adapted
from training.progress import TrainingProgress

HISTORY_KEYS = ("loss", "learning_rate", "eval_loss")


class AdapterTrainer(Trainer):
    """Trains the LoRA weights inside an AnswerLoss."""

    model: AnswerLoss

    def __init__(self, adapted: Mapping[str, Adapted], pad: int, **options: Any) -> None:
        """Take the LoRA modules by name, the padding token, and what Trainer takes."""
        super().__init__(**options)
        self.adapted, self.pad = adapted, pad
        self.tokens = 0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The model's own loss; counts the tokens that are no padding."""
        self.tokens += int((inputs["input_ids"] != self.pad).sum())
        loss: torch.Tensor = model(**inputs)
        return loss

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss over the evaluation split in nats per answer token, every token weighing the same."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in self.get_eval_dataloader():
            logits, targets = self.model.answers(**self._prepare_inputs(batch))
            total += float(functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
        self.model.train()
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter's weights; the base is on disk already."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.adapted, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        read_weights(self.adapted, Path(resume_from_checkpoint))


class Journal(TrainerCallback):
    """Writes the history, shows progress, seals checkpoints."""

    def __init__(self, history: Path, recipe: str, keep: int) -> None:
        """Note where the history goes, what names this run's checkpoints, and how many to keep."""
        self.history, self.recipe, self.keep = history, recipe, keep
        self.trainer: AdapterTrainer | None = None
        self.progress: TrainingProgress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - Trainer's signature
        **_: Any,
    ) -> None:
        """Begin the history with what the checkpoint remembers; later lines of a killed attempt are dropped."""
        events = [event for event in state.log_history if _wanted(event)]
        self.history.write_text("".join(_line(event) for event in events))
        self.progress = TrainingProgress(args.max_steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record an event.

        Raises:
            TrainingFailed: The loss is not a number; nothing is saved at this step.
        """
        event = {"step": state.global_step, **(logs or {})}
        if not _wanted(event):
            return
        if not all(math.isfinite(event[key]) for key in HISTORY_KEYS if key in event):
            raise TrainingFailed(
                f"the loss is {event.get('loss', event.get('eval_loss'))} at step {state.global_step}; lower "
                f"train.learning_rate or train.max_grad_norm, and look at the rows of this step"
            )
        with self.history.open("a") as file:
            file.write(_line(event))
        if self.progress and self.trainer and "loss" in event:
            self.progress.step(state.global_step, event["loss"], self.trainer.tokens)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - Trainer's signature
        **_: Any,
    ) -> None:
        """Declare the checkpoint whole, then delete the ones it replaces."""
        folder = Path(str(args.output_dir))
        checkpoints.seal(folder / f"checkpoint-{state.global_step}", self.recipe)
        checkpoints.prune(folder, self.keep)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the display."""
        if self.progress:
            self.progress.stop()


def arguments(train: Train, folder: Path, device: str) -> TrainingArguments:
    """Trainer's own settings for one run."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(train.warmup_share * train.steps),
        weight_decay=0.0,
        max_grad_norm=train.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would replace the very losses that must stop the run
        eval_strategy="steps",
        eval_steps=train.eval_every,
        save_strategy="steps",
        save_steps=train.checkpoint_every,
        seed=train.seed,
        data_seed=train.seed,
        use_cpu=device == "cpu",
        label_names=["labels"],
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


def _wanted(event: Mapping[str, Any]) -> bool:
    return "loss" in event or "eval_loss" in event


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps({key: event[key] for key in ("step", *HISTORY_KEYS) if key in event}) + "\n"
