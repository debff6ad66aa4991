"""transformers.Trainer for an adapter: steps of micro-batches, over one device or several; saves the adapter alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, TrainingArguments

from pipelines.config import Train
from pipelines.errors import OutOfMemory
from training.adapter import read_weights, write_weights
from training.allocator import Memory
from training.chat.batches import MicroBatch, Once, Stack, Steps
from training.chat.dataset import EncodedRows
from training.loop.optimizer import PagedAdamW8bit
from training.loop.progress import Meter
from training.loss import AnswerLoss
from training.model import Adapted

log = logging.getLogger(__name__)

WORKERS = 4
"""Processes that decode and encode rows ahead of a GPU. On a CPU the model itself needs the cores."""

EVALUATED_TOGETHER = 32
"""Rows that are sorted by length and cut into micro-batches in an evaluation."""

OPTIMIZERS = {"adamw": "adamw_torch_fused", "paged_adamw_8bit": "paged_adamw_8bit"}
"""As Trainer calls them."""


class AdapterTrainer(Trainer):
    """Trains the LoRA weights inside an AnswerLoss."""

    model: AnswerLoss
    train_dataset: EncodedRows
    eval_dataset: EncodedRows

    def __init__(self, adapted: Mapping[str, Adapted], train: Train, pad: int, memory: Memory, **options: Any) -> None:
        """Take the LoRA modules by name, what the config says, the padding token, and what Trainer takes."""
        super().__init__(**options)
        self.adapted, self.train_config, self.memory = adapted, train, memory
        self.tokens_per_batch = train.tokens_per_batch
        self.stack = Stack(pad, train.tokens_per_batch)
        self.meter = Meter()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps as lists of micro-batches, this process's share of each."""
        train, rows = self.train_config, len(self.train_dataset)
        return self._loader(self.train_dataset, Steps(rows, train.batch_size, train.steps, train.seed, self._share))

    def get_eval_dataloader(self, *_: Any) -> DataLoader[Any]:
        """This process's share of the evaluation rows, once."""
        return self._loader(self.eval_dataset, Once(len(self.eval_dataset), EVALUATED_TOGETHER, self._share))

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        """Trainer's own, or on a GPU ours, which waits less."""
        if self.train_config.optimizer != "paged_adamw_8bit":
            return super().create_optimizer(*arguments)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = PagedAdamW8bit(trained, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def training_step(  # type: ignore[override]  # our own loader's batches
        self, model: nn.Module, inputs: Sequence[MicroBatch], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Put the gradients of a whole step in place and return its loss, in nats per answer token.

        Raises:
            OutOfMemory: A micro-batch does not fit, and the config does not ask for smaller ones, or they do not
                fit either.
        """
        model.train()
        random = _random_states()
        try:
            return self._accumulate(model, inputs)
        except OutOfMemory as error:
            if not self._may_halve:
                raise
            log.warning("%s; trying once more with half of train.tokens_per_batch", error)
        # Outside of the except block: the error's traceback would keep the tensors that did not fit.
        self.tokens_per_batch //= 2
        self.log({"tokens_per_batch": self.tokens_per_batch})
        model.zero_grad()
        _restore(random)
        return self._accumulate(model, inputs)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss over the evaluation split in nats per answer token, every token weighing the same."""
        with self.memory.phase("evaluate"):
            self.model.eval()
            total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            for batch in (batch for step in self.get_eval_dataloader() for batch in self._fitting(step)):
                with self._naming(batch):
                    loss, count = self.model.summed(**batch.to(self.args.device).inputs)
                    total += torch.stack([loss.double(), torch.tensor(count, device=loss.device)])
            loss_sum, items = self.accelerator.reduce(total, "sum").tolist()
        metrics = {"eval_loss": loss_sum / items}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.restart()
        return metrics

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        """Add speed and memory to the events of training steps."""
        if "loss" in logs:
            logs |= {**self.meter.step(), "peak_gib": self.memory.look().allocated_gib}
        super().log(logs, *arguments)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter's weights, in one process; the base is on disk already."""
        if self.args.should_save:
            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.adapted, folder)

    def _save_checkpoint(self, *arguments: Any) -> None:
        with self.memory.phase("save"):
            super()._save_checkpoint(*arguments)
        self.meter.restart()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        read_weights(self.adapted, Path(resume_from_checkpoint))
        for event in remembered(Path(resume_from_checkpoint)):
            self.tokens_per_batch = event.get("tokens_per_batch", self.tokens_per_batch)

    def _accumulate(self, model: nn.Module, step: Sequence[MicroBatch]) -> torch.Tensor:
        """Forward and backward of each micro-batch; gradients travel between processes with the last one only."""
        batches = self._fitting(step)
        items, tokens, area = self._everywhere(
            sum(batch.answer_tokens for batch in batches),
            sum(batch.tokens for batch in batches),
            sum(batch.area for batch in batches),
        )
        loss = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                loss += self._backward(model, batch, items)
        self.meter.add(tokens, area)
        return loss

    def _backward(self, model: nn.Module, batch: MicroBatch, items: int) -> torch.Tensor:
        with self._naming(batch):
            # Gradients are averaged over processes, and so is the loss that is logged; both are meant to be sums.
            inputs = batch.to(self.args.device).inputs
            loss: torch.Tensor = model(**inputs, items=items) * self.args.world_size
            self.accelerator.backward(loss)
        return loss.detach()

    def _fitting(self, step: Sequence[MicroBatch]) -> list[MicroBatch]:
        return [part for batch in step for part in batch.within(self.tokens_per_batch)]

    def _everywhere(self, *counts: int) -> list[int]:
        """The sums over all processes."""
        sums: list[int] = self.accelerator.reduce(torch.tensor(counts, device=self.args.device), "sum").tolist()
        return sums

    @contextmanager
    def _naming(self, batch: MicroBatch) -> Iterator[None]:
        """If this goes out of memory, say with what."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            peak = self.memory.look()
            raise OutOfMemory(
                f"out of memory ({self.memory.current}, after step {self.state.global_step}): {len(batch.lengths)} "
                f"rows of up to {batch.lengths[0]} tokens, {batch.area} with padding, at a peak of "
                f"{peak.allocated_gib:.1f} GiB ({peak.reserved_gib:.1f} reserved); lower train.tokens_per_batch "
                f"({self.tokens_per_batch}), images.max_pixels or lora.rank"
            ) from error

    @property
    def _may_halve(self) -> bool:
        train = self.train_config
        return train.retry_out_of_memory and self.tokens_per_batch == train.tokens_per_batch

    @property
    def _share(self) -> slice:
        return slice(self.args.process_index, None, self.args.world_size)

    def _loader(self, rows: EncodedRows, order: Steps | Once) -> DataLoader[Any]:
        return DataLoader(
            rows,
            batch_sampler=order,
            collate_fn=self.stack,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )


def arguments(train: Train, folder: Path, device: str) -> TrainingArguments:
    """Trainer's own settings for one run; finds the other processes, if there are any, and this one's device."""
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=train.steps,
        optim=OPTIMIZERS[train.optimizer],
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
        use_cpu=device == "cpu",
        dataloader_num_workers=WORKERS if device == "cuda" else 0,
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,  # every LoRA weight gets a gradient, be it zero
        ddp_broadcast_buffers=False,  # the frozen base is the same everywhere, and large
        label_names=["labels"],
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    if settings.n_gpu > 1:
        settings._n_gpu = 1  # several GPUs are several processes; Trainer would use them all from this one
    return settings


def remembered(checkpoint: Path) -> list[dict[str, Any]]:
    """The events until a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history


def _random_states() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _restore(states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    host, device = states
    torch.set_rng_state(host)
    if device is not None:
        torch.cuda.set_rng_state(device)
