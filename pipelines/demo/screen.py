"""What a person sees while Dags run: a live table on a terminal, a line per change anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from pipelines.embedded.airflow_api import TaskState
from pipelines.steps import STEPS

ORDER = {name: position for position, name in enumerate(("open_run", "candidate", "person", *STEPS))}
STYLES = {"success": "green", "running": "bold yellow", "failed": "bold red", "up_for_retry": "red", "skipped": "dim"}


class Screen:
    """Shows one Dag run at a time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._dag_id = ""
        self._tasks: Sequence[TaskState] = ()
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """A sentence of the story."""
        self.console.print(text, style="bold", highlight=False, soft_wrap=True)

    @contextmanager
    def dag_run(self, dag_id: str) -> Iterator[None]:
        """Show a Dag run while the block runs; its last picture stays."""
        self._dag_id, self._tasks = dag_id, ()
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def show(self, tasks: Sequence[TaskState]) -> None:
        """The tasks as they are now."""
        before = {task.task_id: task.state for task in self._tasks}
        self._tasks = sorted(tasks, key=lambda task: ORDER.get(task.task_id, len(ORDER)))
        if self._live is not None:
            self._live.refresh()
            return
        for task in self._tasks:
            if task.state is not None and task.state != before.get(task.task_id):
                seconds = f"{task.seconds:6.1f} s" if task.seconds is not None and task.state == "success" else ""
                line = f"{self._dag_id:9} {task.task_id:10} {task.state:14} {seconds}"
                self.console.print(line.rstrip(), highlight=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        table = Table("Dag", "step", "state", "seconds")
        table.columns[3].justify = "right"
        for task in self._tasks:
            state = task.state or "waiting"
            seconds = "" if task.seconds is None else f"{task.seconds:.1f}"
            table.add_row(self._dag_id, task.task_id, state, seconds, style=STYLES.get(state))
        return table
