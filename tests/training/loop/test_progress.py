"""Speed counts training alone; without a terminal there are plain lines with every figure."""

from __future__ import annotations

import itertools

import pytest

from training.loop import progress
from training.loop.progress import WINDOW, Meter, TrainingProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever somebody looks."""
    seconds = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_a_step_has_its_own_speed_and_padding() -> None:
    meter = Meter()
    meter.add(tokens=60, area=80)
    meter.add(tokens=30, area=40)
    assert meter.step() == {"tokens": 90, "padding": 0.25, "tokens_per_second": 90}
    meter.add(tokens=10, area=10)
    assert meter.step() == {"tokens": 10, "padding": 0, "tokens_per_second": 10}


@pytest.mark.usefixtures("clock")
def test_what_was_done_between_steps_is_not_counted() -> None:
    meter = Meter()
    progress.time.monotonic()
    meter.restart()
    meter.add(tokens=60, area=60)
    assert meter.step()["tokens_per_second"] == 60


def test_the_last_step_is_always_told_with_the_speed_of_the_last_ones(capfd: pytest.CaptureFixture[str]) -> None:
    shown = TrainingProgress(WINDOW + 1, 0)
    event = {"loss": 0.5, "padding": 0.25, "peak_gib": 21.34, "tokens": 1000}
    shown.step({**event, "step": 1, "tokens_per_second": 1})  # long ago, and slow
    for step in range(2, WINDOW + 2):
        shown.step({**event, "step": step, "tokens_per_second": 2000})
    shown.stop()
    told = capfd.readouterr().err
    assert f"step {WINDOW + 1}/{WINDOW + 1}  loss 0.5000  2,000 tokens/s  25% padding  21.3 GiB  0 s left" in told
