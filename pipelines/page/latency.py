"""How long answers took: the whole distribution, not two figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.judgement.resources import measured_alike
from pipelines.page.drawing import PAINT, Picture, draw
from pipelines.page.sides import Column, column
from pipelines.page.wording import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def alike(models: Sequence[Column]) -> tuple[Column, ...]:
    """The models whose times may be compared with the candidate's: one engine, one load."""
    candidate = column(tuple(models), "candidate")
    return tuple(
        model for model in models if candidate is not None and measured_alike(candidate.side.report, model.side.report)
    )


def latency_chart(folder: Path, models: Sequence[Column]) -> Picture | None:
    """The share of answers that were there after so many milliseconds; None where there is no time to draw."""
    times = [[answer.seconds * 1000 for answer in model.side.answers.values()] for model in models]
    if not any(times):
        return None
    figures = "; ".join(
        f"{model.title} {model.evaluation.latency_p50_ms:.0f} ms at the median, "
        f"{model.evaluation.latency_p99_ms:.0f} ms at the 99th percentile"
        for model in models
    )

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for model, milliseconds in zip(models, times, strict=True):
            axes.ecdf(
                milliseconds,
                color=PAINT[model.paint],
                linewidth=2.2 if model.paint == "candidate" else 1.5,
                label=short(model.title, 26),
            )
        axes.axhline(0.99, color=PAINT["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.99], ["0", "25", "50", "75", "99"])
        axes.set_xlim(left=0)
        axes.set_ylabel("answers, %")
        axes.set_xlabel("milliseconds until the whole answer")
        axes.grid(color=PAINT["line"], linewidth=0.6)
        axes.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=1 if narrow else 4, columnspacing=1.2)

    return draw(folder, "latency", f"Time of an answer. {figures}.", plot, wide_height=2.9, narrow_height=3.1)
