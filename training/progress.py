"""What a person sees of training: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
"""Between two lines where there is no terminal."""


class TrainingProgress:
    """Shows step, loss, tokens per second and the time that is left."""

    def __init__(self, steps: int, first: int) -> None:
        """Start at step `first` of `steps`."""
        self.steps, self.first = steps, first
        self.began = self.spoken = time.monotonic()
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("fine-tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("fine-tuning", total=steps, completed=first, figures="")
        self.bar.start()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """Show a finished step.

        Args:
            step: Its number.
            loss: Nats per answer token.
            tokens: All tokens since the start of this process.
        """
        now = time.monotonic()
        figures = f"loss {loss:.4f}  {tokens / (now - self.began):,.0f} tokens/s"
        self.bar.update(self.task, completed=step, figures=figures)
        if self.console.is_terminal or (now - self.spoken < PLAIN_SECONDS and step < self.steps):
            return
        self.spoken = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        self.console.print(f"step {step}/{self.steps}  {figures}  {left:.0f} s left", highlight=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()
