"""How the candidate was trained: its loss, and the memory that was planned and measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.artifacts import Adapter
from pipelines.budget.measured import predictions
from pipelines.history import read_history
from pipelines.page.drawing import PAINT, Picture, draw
from pipelines.run import Run
from pipelines.steps import EVALUATE, FINETUNE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED_SHARE = 0.02
"""Of all steps, on either side of one: the width of the running median that is drawn over them."""

MEMORY_TITLES = {FINETUNE.name: "training", EVALUATE.name: "serving the candidate"}


@dataclass(frozen=True)
class Loss:
    """The curves of a training, nats per answer token."""

    steps: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Memory:
    """Peak memory of a step, GiB."""

    title: str
    measured: float
    predicted: float | None
    """What the plan said; None where there is none."""


def read_loss(history: Path) -> Loss | None:
    """The curves that a training left, or None if it left none."""
    events = read_history(history)
    steps = tuple((at, event["loss"]) for at, event in events if "loss" in event)
    evaluations = tuple((at, event["eval_loss"]) for at, event in events if "eval_loss" in event)
    return Loss(steps, evaluations) if steps or evaluations else None


def loss_chart(folder: Path, loss: Loss, adapter: Adapter) -> Picture:
    """Loss by step, with the step whose weights are handed on."""
    alt = f"Loss over {adapter.steps} steps; the evaluation loss ends at {adapter.eval_loss:.3g}."

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        at, values = [step for step, _ in loss.steps], [value for _, value in loss.steps]
        axes.plot(at, values, color=PAINT["base"], alpha=0.35, linewidth=0.8)
        axes.plot(at, smoothed(values), color=PAINT["base"], linewidth=1.8, label="training, running median")
        if loss.evaluations:
            axes.plot(
                *zip(*loss.evaluations, strict=True), "o-", color=PAINT["candidate"], markersize=4, label="evaluation"
            )
        axes.axvline(adapter.best_step, color=PAINT["pass"], linewidth=1, linestyle=(0, (4, 3)), label="kept")
        if values and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("step")
        axes.set_ylabel("nats per answer token")
        axes.grid(axis="y", color=PAINT["line"], linewidth=0.6)
        axes.tick_params(length=0, which="both")
        figure.legend(loc="outside upper left", ncols=2 if narrow else 3, columnspacing=1.2)

    return draw(folder, "loss", alt, plot, wide_height=2.9, narrow_height=2.7)


def smoothed(values: Sequence[float]) -> list[float]:
    """The median of the values around each one."""
    half = round(SMOOTHED_SHARE * len(values))
    return [statistics.median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def memory(run: Run, adapter: Adapter | None, served_gib: float | None) -> tuple[Memory, ...]:
    """Planned and measured peaks of the steps that have a plan."""
    planned = predictions(run, FINETUNE) | predictions(run, EVALUATE)
    measured = {FINETUNE.name: adapter.peak_gib if adapter else None, EVALUATE.name: served_gib}
    return tuple(
        Memory(MEMORY_TITLES[step], gib, planned.get(f"{step}.predicted_peak_gib"))
        for step, gib in measured.items()
        if gib is not None
    )


def memory_chart(folder: Path, found: Sequence[Memory]) -> Picture:
    """Bars of what was measured, a line where the plan expected it."""
    alt = "Peak memory: " + "; ".join(
        f"{each.title} {each.measured:.2f} GiB" + (f", planned {each.predicted:.2f}" if each.predicted else "")
        for each in found
    )

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        places = range(len(found))
        axes.barh(places, [each.measured for each in found], 0.46, color=PAINT["candidate"], label="measured")
        planned = [(at, each.predicted) for at, each in zip(places, found, strict=True) if each.predicted is not None]
        for number, (at, gib) in enumerate(planned):
            axes.plot(
                [gib, gib], [at - 0.36, at + 0.36], color=PAINT["ink"], linewidth=2, label="" if number else "planned"
            )
        axes.set_ylim(len(found) - 0.4, -0.8 if narrow else -0.6)
        axes.set_yticks([] if narrow else places, [] if narrow else [each.title for each in found])
        for at, each in enumerate(found if narrow else ()):
            axes.annotate(each.title, (0, at - 0.5), xycoords=("axes fraction", "data"))
        axes.set_xlabel("GiB")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=2)

    return draw(
        folder, "memory", alt, plot, wide_height=0.95 + 0.42 * len(found), narrow_height=1.0 + 0.55 * len(found)
    )
