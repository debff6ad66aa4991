"""Charts as the page needs them: a PNG for files and MLflow, and SVG that takes the page's colours, light and dark.

Each chart is drawn twice, for a wide window and for a phone, so that its letters are never scaled to nothing; the style
sheet shows one of the two.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAINT = {
    "ink": "#1b2029",
    "muted": "#596273",
    "line": "#d8dde5",
    "pass": "#157a3c",
    "fail": "#b3261e",
    "inconclusive": "#a15c07",
    "base": "#6b7687",
    "merged": "#7c4ddb",
    "candidate": "#1f5fd6",
    "champion": "#0b7a75",
}
"""Colours by the name of their variable in the style sheet; a picture in a file has the light ones."""

WIDE_INCHES, NARROW_INCHES = 7.6, 3.5


@dataclass(frozen=True)
class Picture:
    """One chart."""

    alt: str
    """What it shows, in words."""

    wide: Markup
    narrow: Markup


Plot = Callable[["Figure", bool], None]
"""Draws on an empty figure; the flag says that it is narrow."""


def draw(folder: Path, name: str, alt: str, plot: Plot, *, wide_height: float, narrow_height: float) -> Picture:
    """Draw a chart, and leave its PNG in a folder.

    Args:
        name: Of the file, without its ending; also keeps the chart's own names apart from those of the others.
        wide_height: Inches.
        narrow_height: Inches.
    """
    wide = _svg(f"{name}-wide", alt, plot, (WIDE_INCHES, wide_height), folder / f"{name}.png")
    narrow = _svg(f"{name}-narrow", alt, plot, (NARROW_INCHES, narrow_height), None)
    return Picture(alt, wide, narrow)


def _svg(name: str, alt: str, plot: Plot, inches: tuple[float, float], png: Path | None) -> Markup:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_style(name)):
        figure = Figure(figsize=inches, layout="constrained")
        plot(figure, inches[0] == NARROW_INCHES)
        if png is not None:
            figure.savefig(png, dpi=160)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _themed(file.getvalue(), name, alt)


def _style(name: str) -> dict[Any, Any]:
    return {
        "font.size": 8.5,
        "text.color": PAINT["ink"],
        "text.parse_math": False,  # a slice may be named `$`
        "axes.edgecolor": PAINT["line"],
        "axes.labelcolor": PAINT["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": PAINT["line"],
        "ytick.color": PAINT["line"],
        "xtick.labelcolor": PAINT["muted"],
        "ytick.labelcolor": PAINT["ink"],
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text, in the page's own letters
        "svg.hashsalt": name,
    }


def _themed(svg: str, name: str, alt: str) -> Markup:
    """An SVG as part of the page: without what only a file needs, with the page's colours, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{_for_re(alt)}">', svg)
    for colour, value in PAINT.items():
        svg = svg.replace(value, f"var(--{colour})")
    return Markup(svg)  # noqa: S704  matplotlib's own output, in which it has escaped every text


def _for_re(text: str) -> str:
    return str(escape(text)).replace("\\", r"\\")
