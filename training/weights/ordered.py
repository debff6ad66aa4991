"""Work done by several threads, its results in the order it was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, threads: int, ahead: int
) -> Generator[tuple[Task, Result]]:
    """Each task with its result. Closing it waits for the tasks that were begun.

    Args:
        work: Called by the threads.
        tasks: Taken one by one, no sooner than needed.
        threads: That work at once.
        ahead: Tasks begun before the first of them is handed out: the bound of the memory they take.

    Raises:
        Exception: The first that the work raises; tasks not begun by then are dropped.
    """
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for task in tasks:
            waiting.append((task, pool.submit(work, task)))
            if len(waiting) >= ahead:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _first(waiting: deque[tuple[Task, Future[Result]]]) -> tuple[Task, Result]:
    task, future = waiting.popleft()
    return task, future.result()
