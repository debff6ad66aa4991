"""Quality by slice: what the reference and the others reach, and how far the candidate is from the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.artifacts import Finding, GateDecision
from pipelines.evaluation import Score
from pipelines.page.drawing import PAINT, Picture, draw
from pipelines.page.sides import Column
from pipelines.page.wording import listed, percent, short, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEME = "quantization"
"""Name of the finding that compares with the merged model instead of the reference."""

MARKS = {"base": "o", "merged": "s", "champion": "D", "candidate": "o"}
TICKS = (-100, -50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100)
LINEAR_POINTS = 5.0
"""Where the axis of differences starts to be compressed, if one of them is far away."""


@dataclass(frozen=True)
class Row:
    """A slice, or all of them together for the cost of the scheme."""

    name: str
    scores: tuple[Score | None, ...]
    """A score for each column."""

    finding: Finding | None


@dataclass(frozen=True)
class Difference:
    """A finding that has a difference with bounds, in points."""

    name: str
    outcome: str
    observed: float
    lower: float
    upper: float
    threshold: float | None


def rows(models: Sequence[Column], decision: GateDecision) -> tuple[Row, ...]:
    """A row for each slice that any model answered, in the order of the findings."""
    findings = {finding.name: finding for finding in decision.findings}
    measured = {name for model in models for name in model.evaluation.scores}
    names = [name for name in findings if name in measured] + sorted(measured - findings.keys())
    return tuple(
        Row(name, tuple(model.evaluation.scores.get(name) for model in models), findings.get(name)) for name in names
    )


def compared(decision: GateDecision) -> tuple[Difference, ...]:
    """The differences that the gate found, the cost of the scheme last."""
    found = (_difference_of(finding) for finding in decision.findings)
    return tuple(sorted((each for each in found if each), key=lambda each: each.name == SCHEME))


def _difference_of(finding: Finding) -> Difference | None:
    if finding.difference is None or finding.lower is None or finding.upper is None:
        return None
    threshold = None if finding.threshold is None else 100 * finding.threshold
    figures = (100 * finding.difference, 100 * finding.lower, 100 * finding.upper)
    return Difference(finding.name, finding.outcome, *figures, threshold)


def is_quality(finding: Finding, models: Sequence[Column]) -> bool:
    """Whether a finding is about right answers, and not about a limit."""
    named = {name for model in models for name in model.evaluation.scores}
    return finding.name in named | {SCHEME, "evaluation"}


def difference_chart(folder: Path, decision: GateDecision, confidence: float) -> Picture | None:
    """Differences with bounds and what is tolerated; None where nothing was compared."""
    found = compared(decision)
    if not found:
        return None
    figures = listed([f"{each.name} {signed(each.observed, '.1f')}" for each in found])
    alt = f"Difference from {decision.reference} in points, with {confidence:.0%} bounds: {figures}."

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        left = _scale(axes, found, narrow)
        for at, each in enumerate(found):
            _draw_difference(axes, at, each, left)
        names = [short(f"{each.name}, against merged" if each.name == SCHEME else each.name, 34) for each in found]
        _name_rows(axes, names, narrow)
        axes.set_xlabel(f"points against {short(decision.reference, 30)}")

    return draw(
        folder,
        "difference",
        alt,
        plot,
        wide_height=0.75 + 0.36 * len(found),
        narrow_height=0.7 + 0.5 * len(found),
    )


def share_chart(folder: Path, models: Sequence[Column], table: Sequence[Row]) -> Picture | None:
    """Right answers of each model with intervals; None where nothing was measured."""
    if not table:
        return None
    figures = "; ".join(
        f"{row.name}: "
        + ", ".join(f"{m.title} {percent(s.share)}" for m, s in zip(models, row.scores, strict=True) if s)
        for row in table
    )

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for number, model in enumerate(models):
            _shares(axes, model, [row.scores[number] for row in table], (number - (len(models) - 1) / 2) * 0.17)
        _name_rows(axes, [short(row.name, 34) for row in table], narrow)
        lowest = min(score.low for row in table for score in row.scores if score)
        axes.set_xlim(math.floor(lowest * 10) * 10 - 2, 102)
        axes.set_xlabel("right answers, %")
        figure.legend(loc="outside upper left", ncols=2 if narrow else 4, handletextpad=0.2, columnspacing=1.2)

    return draw(
        folder,
        "quality",
        f"Right answers with 95 % intervals. {figures}.",
        plot,
        wide_height=1.0 + 0.52 * len(table),
        narrow_height=1.15 + 0.68 * len(table),
    )


def _scale(axes: Axes, found: Sequence[Difference], narrow: bool) -> float:
    """Set the axis of differences, and return its left end."""
    ends = [value for each in found for value in (each.lower, each.upper, each.threshold or 0)]
    left, right = min([*ends, -2]) * 1.15, max([*ends, 2]) * 1.15
    if max(-left, right) > 4 * LINEAR_POINTS:
        axes.set_xscale("asinh", linear_width=LINEAR_POINTS)
        kept = [tick for tick in TICKS if left <= tick <= right and not (narrow and abs(tick) in {2, 20})]
        axes.set_xticks(kept, [signed(tick, "d") if tick else "0" for tick in kept])
        axes.minorticks_off()
    axes.set_xlim(left, right)
    axes.axvline(0, color=PAINT["muted"], linewidth=0.8, zorder=1)
    return left


def _draw_difference(axes: Axes, at: int, each: Difference, left: float) -> None:
    paint, height = PAINT[each.outcome], [at - 0.3, at + 0.3]
    if each.threshold is not None:
        axes.fill_betweenx(height, left, each.threshold, color=PAINT["fail"], alpha=0.12, linewidth=0, zorder=0)
        axes.plot([each.threshold] * 2, height, color=PAINT["fail"], linewidth=1.2, zorder=2)
    axes.plot([each.lower, each.upper], [at, at], color=paint, linewidth=2.4, zorder=3)
    axes.plot([each.observed], [at], "o", color=paint, markersize=6.5, zorder=4)


def _shares(axes: Axes, model: Column, scores: Sequence[Score | None], offset: float) -> None:
    there = [(at + offset, score) for at, score in enumerate(scores) if score is not None]
    paint = PAINT[model.paint]
    for at, score in there:
        axes.plot([score.low * 100, score.high * 100], [at, at], color=paint, linewidth=1.8, zorder=2)
    axes.plot(
        [score.share * 100 for _, score in there],
        [at for at, _ in there],
        MARKS[model.paint],
        color=paint,
        markersize=5.5 if model.paint == "candidate" else 4.5,
        label=short(model.title, 26),
        zorder=3,
    )


def _name_rows(axes: Axes, names: Sequence[str], narrow: bool) -> None:
    """Rows from the top down; on a phone the names stand above their rows."""
    axes.set_ylim(len(names) - 0.4, -0.85 if narrow else -0.6)
    axes.grid(axis="x", color=PAINT["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    if not narrow:
        axes.set_yticks(range(len(names)), list(names))
        return
    axes.set_yticks([])
    for at, name in enumerate(names):
        axes.annotate(name, (0, at - 0.42), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
