"""Rows are checked several at a time, and come out in order, each with its tokens or its reason."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tests.training.parts import write_rows, write_source
from training.chat.checking import AHEAD, THREADS, check_rows, map_ahead
from training.chat.encoding import Encoder
from training.chat.progress import RowsProgress
from training.formats.source import open_source


def test_items_come_in_order_and_only_so_many_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(5 * AHEAD):
            taken.append(i)
            yield i

    first = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0 and THREADS > 1:
            first.wait(30)
        return 2 * item

    results = map_ahead(slow_first, items())
    first.set()
    assert next(results) == 0
    assert len(taken) <= AHEAD + 1
    assert list(results) == [2 * i for i in range(1, 5 * AHEAD)]


def test_rows_and_rejects_are_in_order_with_their_tokens(tmp_path: Path, encoder: Encoder) -> None:
    rows = write_source(tmp_path / "source", {"printed": 30})
    for i in (3, 17):
        (tmp_path / "source" / "images" / f"{i}.png").unlink()
    write_rows(tmp_path / "source", rows)
    (tmp_path / "images").mkdir()
    usable, rejects = check_rows(open_source(tmp_path / "source"), tmp_path / "images", encoder, 4096)
    assert [counted.row.id for counted in usable] == [str(i) for i in range(30) if i not in (3, 17)]
    assert [reject.line for reject in rejects] == [4, 18]
    for counted in usable:
        assert (counted.tokens, counted.visual) == encoder.count(counted.row.chat(), [(64, 64)])


def test_without_a_terminal_the_last_word_says_how_many_were_unusable() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=100)
    with RowsProgress(3, console) as progress:
        for usable in (True, False, True):
            progress.row(usable=usable)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert said.startswith("rows 3/3  1 unusable")
    assert said.count("\n") == 1


def test_on_a_terminal_there_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with RowsProgress(2, console) as progress:
        progress.row(usable=True)
        progress.row(usable=True)
    assert isinstance(console.file, io.StringIO)
    assert "checking rows" in console.file.getvalue()
