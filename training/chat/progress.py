"""What a person sees while rows are checked: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0
"""Between two lines where there is no terminal."""


class RowsProgress:
    """Shows how many rows were checked, how many of them are unusable, and how fast it goes."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        """Expect about `total` rows."""
        self.total, self.console = total, console or Console(stderr=True)
        self.done = self.rejected = 0
        self.began = self.spoken = time.monotonic()
        self.bar = Progress(
            TextColumn("checking rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("checking rows", total=total, figures="")

    def __enter__(self) -> Self:
        """Take the terminal's last line."""
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Say how it ended, and leave the terminal as it was."""
        self.bar.stop()
        if kind is None:
            self._say()

    def row(self, *, usable: bool) -> None:
        """One more row."""
        self.done += 1
        self.rejected += not usable
        self.bar.update(self.task, completed=self.done, figures=self._figures())
        if not self.console.is_terminal and time.monotonic() - self.spoken >= PLAIN_SECONDS:
            self._say()

    def _say(self) -> None:
        self.spoken = time.monotonic()
        self.console.print(f"rows {self.done}/{max(self.done, self.total)}  {self._figures()}", highlight=False)

    def _figures(self) -> str:
        speed = self.done / max(time.monotonic() - self.began, 1e-9)
        return f"{self.rejected:,} unusable  {speed:,.0f} rows/s"
