"""How far something is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function to be called after each of `total` things."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total).tick
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


class _Lines:
    """A line for each quarter."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0

    def tick(self) -> None:
        self._done += 1
        if self._done * 4 // self._total > (self._done - 1) * 4 // self._total:
            log.info("%s: %d of %d", self._title, self._done, self._total)
