"""A training's history is read as far as it can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.history import read_history

GOOD = '{"step": 1, "loss": 2.0, "learning_rate": 0.001}'


def test_every_figure_has_its_step(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text(f'{GOOD}\n{{"step": 1, "eval_loss": 1}}\n')
    assert read_history(history) == ((1, {"loss": 2.0, "learning_rate": 0.001}), (1, {"eval_loss": 1.0}))
    assert read_history(tmp_path / "none.jsonl") == ()


@pytest.mark.parametrize(
    "line", [b'{"step": 2, "lo', b"", b"null", b"[1]", b'{"loss": 1}', b'{"step": "2"}', b"\xff\x00"]
)
def test_a_line_that_is_no_event_is_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "history.jsonl").write_bytes(GOOD.encode() + b"\n" + line)
    assert [at for at, _ in read_history(tmp_path / "history.jsonl")] == [1]


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", '"2.0"', "true", "[2.0]"])
def test_a_figure_that_is_no_number_is_left_out(tmp_path: Path, value: str) -> None:
    (tmp_path / "history.jsonl").write_text(f'{{"step": 3, "loss": {value}, "grad_norm": 1.5}}\n')
    assert read_history(tmp_path / "history.jsonl") == ((3, {"grad_norm": 1.5}),)
