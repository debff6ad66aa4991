"""Quality, speed and memory of every scheme in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.charts import SCHEME_LABELS
from pipelines.comparison.found import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(found: Comparison, path: Path) -> None:
    """Right answers, requests a minute and weights side by side, with 95 % intervals where there are any.

    Args:
        found: With at least one scheme that was measured.
        path: A PNG file.
    """
    from matplotlib.figure import Figure

    rows = found.measured
    figure = Figure(figsize=(10, 1.2 + 0.5 * len(rows)), layout="constrained")
    quality, speed, memory = figure.subplots(1, 3, sharey=True)
    _bars(quality, "right answers", [_quality(row) for row in rows])
    _bars(speed, "requests/min, most at once", [_speed(row) for row in rows])
    _bars(memory, "weights, GiB", [(row.weights_gib or 0.0, None, None) for row in rows])
    quality.set_xlim(0, 1.02)
    quality.set_yticks(range(len(rows)), [SCHEME_LABELS.get(row.name, row.name.upper()) for row in rows])
    quality.invert_yaxis()  # the first scheme on top, as in the tables
    figure.savefig(path, dpi=120)


def _bars(axes: Axes, title: str, values: Sequence[tuple[float, float | None, float | None]]) -> None:
    """A bar for each mean, low and high; no bar begins or ends below zero."""
    means = [mean for mean, _, _ in values]
    below = [0.0 if low is None else mean - max(0.0, low) for mean, low, _ in values]
    above = [0.0 if high is None else high - mean for mean, _, high in values]
    axes.barh(range(len(values)), means, 0.6, xerr=[below, above], capsize=3)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


def _quality(row: Row) -> tuple[float, float | None, float | None]:
    score = row.score
    return (score.share, score.low, score.high) if score else (0.0, None, None)


def _speed(row: Row) -> tuple[float, float | None, float | None]:
    rate = row.batched("requests_per_minute")
    return (rate.mean, rate.low, rate.high) if rate else (0.0, None, None)
