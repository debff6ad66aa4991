"""What a person sees of training: a bar on a terminal, plain lines anywhere else; and the speed that it shows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
"""Between two lines where there is no terminal."""

WINDOW = 20
"""Steps that the speed shown is over."""


class Meter:
    """Tokens, padding and speed of each training step; evaluations and checkpoints are not counted."""

    def __init__(self) -> None:
        """Start the clock."""
        self.restart()

    def restart(self) -> None:
        """What was done since the last step was no training."""
        self.began = time.monotonic()
        self.tokens = self.area = 0

    def add(self, tokens: int, area: int) -> None:
        """Count micro-batches: tokens without and with padding."""
        self.tokens += tokens
        self.area += area

    def step(self) -> dict[str, float]:
        """The figures of the step that ends now."""
        figures = {
            "tokens": self.tokens,
            "padding": 1 - self.tokens / self.area,
            "tokens_per_second": self.tokens / (time.monotonic() - self.began),
        }
        self.restart()
        return figures


class TrainingProgress:
    """Shows step, loss, tokens per second, padding, peak memory and the time that is left."""

    def __init__(self, steps: int, first: int) -> None:
        """Start at step `first` of `steps`."""
        self.steps, self.first = steps, first
        self.began = self.spoken = time.monotonic()
        self.recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
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

    def step(self, event: Mapping[str, float]) -> None:
        """Show a finished step.

        Args:
            event: Its line of the history.
        """
        now, step = time.monotonic(), int(event["step"])
        figures = self._figures(event)
        self.bar.update(self.task, completed=step, figures=figures)
        if self.console.is_terminal or (now - self.spoken < PLAIN_SECONDS and step < self.steps):
            return
        self.spoken = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        self.console.print(f"step {step}/{self.steps}  {figures}  {left:.0f} s left", highlight=False)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()

    def _figures(self, event: Mapping[str, float]) -> str:
        self.recent.append((event["tokens"], event["tokens"] / event["tokens_per_second"]))
        tokens, seconds = (sum(column) for column in zip(*self.recent, strict=True))
        return (
            f"loss {event['loss']:.4f}  {tokens / seconds:,.0f} tokens/s  {event['padding']:.0%} padding  "
            f"{event['peak_gib']:.1f} GiB"
        )
