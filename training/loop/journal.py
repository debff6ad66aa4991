"""The history of a training run: a line for each step and evaluation, and what follows from the evaluations.

Trainer keeps the same events in its state, and so in every checkpoint: a resumed run knows all that came before, and
which step is the best, or when to stop, is computed from the history and stored nowhere else.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.config import Train
from pipelines.errors import TrainingFailed
from training.loop import checkpoints
from training.loop.progress import TrainingProgress

log = logging.getLogger(__name__)

MEASURED = ("tokens_per_second", "peak_gib")
"""What differs between two runs that are otherwise the same."""

KEYS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "padding", *MEASURED, "eval_loss", "tokens_per_batch")
"""What is kept of Trainer's events. `tokens_per_batch` is one of its own: the budget was halved."""

FINITE = ("loss", "grad_norm", "eval_loss")

Event = dict[str, Any]


def evaluations(events: Iterable[Event]) -> dict[int, float]:
    """Evaluation losses by step, in order."""
    return {event["step"]: event["eval_loss"] for event in events if "eval_loss" in event}


def best_step(losses: Mapping[int, float]) -> int:
    """Step of the lowest loss, the earliest of several."""
    return min(losses, key=lambda step: losses[step])


def exhausted(losses: Mapping[int, float], patience: int | None) -> bool:
    """Whether the last `patience` evaluations all failed to improve on one before them."""
    steps = list(losses)
    return bool(steps) and patience is not None and len(steps) - 1 - steps.index(best_step(losses)) >= patience


def read_history(path: Path) -> list[Event]:
    """The events of `history.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Journal(TrainerCallback):
    """Writes the history, shows progress, decides what is kept and when it is enough, seals checkpoints."""

    def __init__(self, history: Path, recipe: str, train: Train) -> None:
        """Note where the history goes, what names this run's checkpoints, and what the config says of both."""
        self.history, self.recipe, self.train = history, recipe, train
        self.progress: TrainingProgress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - Trainer's signature
        **_: Any,
    ) -> None:
        """Begin the history with what the checkpoint remembers; later lines of a killed attempt are dropped."""
        if state.is_world_process_zero:
            self.history.write_text("".join(_line(event) for event in state.log_history if _wanted(event)))
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
            TrainingFailed: A loss or the gradient is not a number; nothing is saved at this step.
        """
        event = {**(logs or {}), "step": state.global_step}
        if not _wanted(event):
            return
        for key in FINITE:
            if not math.isfinite(event.get(key, 0)):
                raise TrainingFailed(
                    f"{key} is {event[key]} at step {state.global_step}; lower train.learning_rate or "
                    f"train.max_grad_norm, and look at the rows of this step"
                )
        if state.is_world_process_zero:
            with self.history.open("a") as file:
                file.write(_line(event))
        if self.progress and "loss" in event:
            self.progress.step(event)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Keep the weights that were just evaluated if none were better; stop if it is enough."""
        losses = evaluations(state.log_history)
        if self.train.keep_best and best_step(losses) == state.global_step:
            control.should_save = True
        if exhausted(losses, self.train.patience):
            control.should_save = control.should_training_stop = True
            log.info(
                "stopping at step %d: no evaluation was better since step %d", state.global_step, best_step(losses)
            )

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - Trainer's signature
        **_: Any,
    ) -> None:
        """Declare the checkpoint whole once every process has written its part, then delete the ones it replaces."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            checkpoints.seal(checkpoints.path_of(folder, state.global_step), self.recipe)
            newest = checkpoints.steps(folder)[: self.train.keep_checkpoints]
            losses = evaluations(state.log_history) if self.train.keep_best else {}
            checkpoints.prune(folder, {*newest, *_best_until(newest, losses)})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the display."""
        if self.progress:
            self.progress.stop()


def _best_until(steps: Iterable[int], losses: Mapping[int, float]) -> Iterator[int]:
    """For each step the best one that it knows of: if newer checkpoints prove damaged, that one is needed again."""
    for last in steps:
        if known := {step: loss for step, loss in losses.items() if step <= last}:
            yield best_step(known)


def _wanted(event: Event) -> bool:
    return any(key in event for key in ("loss", "eval_loss", "tokens_per_batch"))


def _line(event: Event) -> str:
    return json.dumps({key: event[key] for key in KEYS if key in event}) + "\n"
