"""The comparison as tables: on the screen, as Markdown, and all figures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.comparison.found import Comparison, Row
from pipelines.comparison.rows import REFERENCE
from pipelines.evaluation import Score
from pipelines.judgement.paired import Comparison as Difference
from pipelines.load_report import Interval, LoadPoint, Traffic, traffics

NOTHING = "-"


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(found: Comparison) -> tuple[Sheet, ...]:
    """The tables, the one to be read first first."""
    return (_overview(found), _quality(found), _memory(found), *_loads(found))


def show_tables(found: Comparison, console: Console) -> None:
    """Print them, and what was not measured, with the reason."""
    for sheet in sheets(found):
        table = Table(*sheet.header, title=Text(sheet.title, "italic"), title_justify="left", box=box.SIMPLE_HEAD)
        for row in sheet.rows:
            table.add_row(*map(Text, row))  # slices and reasons are data: brackets in them are no markup
        console.print(table)
    for line in remarks(found):
        console.print(Text(line), soft_wrap=True)


def markdown_of(found: Comparison) -> str:
    """The same as a document."""
    parts = [f"# {found.run} in {len(found.rows)} schemes", "\n".join(f"- {line}" for line in remarks(found))]
    for sheet in sheets(found):
        lines = (sheet.header, ("---",) * len(sheet.header), *sheet.rows)
        parts += [f"## {sheet.title}", "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table: a bar would end it."""
    return " ".join(text.replace("|", r"\|").split())


def csv_of(found: Comparison) -> str:
    """One line for each scheme, every figure a number, empty where there is none."""
    text = io.StringIO()
    figures = [_figures(found, row) for row in found.rows]
    columns = list(dict.fromkeys(name for line in figures for name in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(figures)
    return text.getvalue()


def remarks(found: Comparison) -> Iterator[str]:
    """What holds for all tables, and what is missing in them."""
    load, config = found.config.load, found.config
    engines = sorted({row.measured.engine for row in found.rows if row.measured})
    yield f"{', '.join(engines) or 'no engine'} on {config.hardware.name}; pixel limit {config.images.max_pixels:,}"
    yield (
        f"load: {load.repeats} x {load.requests} requests at each point, answers of exactly {load.output_tokens} "
        f"tokens, no picture twice; figures are means over runs, with 95 % t intervals where there are several"
    )
    yield (
        f"quality: answers to sealed test questions, differences from {REFERENCE} item by item with one-sided "
        f"{config.gate.confidence:.0%} bounds; nothing was decided by them, so this was no attempt at the gate"
    )
    for row in found.rows:
        if row.missing:
            yield f"{row.name}: not measured: {row.missing.splitlines()[0]}"
        yield from (f"{row.name}: no figures at {_objection(point)}" for point in row.lost)


def _objection(point: LoadPoint) -> str:
    return f"{point.traffic.label}: {'; '.join(dict.fromkeys(point.objections))}"


def _overview(found: Comparison) -> Sheet:
    point = next((p for row in found.measured if (p := _fullest(row))), None)
    many = f"{point.traffic.concurrency} at once" if point else "many at once"
    lines: dict[str, Callable[[Row], str]] = {
        "ms an image, one at a time": lambda row: _interval(row.single("e2e_p50_ms")),
        f"ms an image, {many}": lambda row: _interval(row.batched("ms_per_request")),
        f"requests/min, {many}": lambda row: _interval(row.batched("requests_per_minute")),
        "weights, GiB": lambda row: _number(row.weights_gib),
        "peak, GiB": lambda row: _number(row.measured.load.peak_gib if row.measured else None),
        "right answers": lambda row: _score(row.score),
        f"points against {REFERENCE}": lambda row: _difference(found.difference(row)),
        f"on {found.rows[0].planned.card}": lambda row: row.planned.fits,
    }
    return _by_scheme("Speed, memory, quality", found, lines)


def _quality(found: Comparison) -> Sheet:
    slices = sorted({name for row in found.rows if row.measured for name in row.measured.scores})
    lines = {name: partial(_slice, name=name) for name in slices}
    return _by_scheme("Right answers by slice, with 95 % intervals", found, lines)


def _slice(row: Row, name: str) -> str:
    return _score(row.measured.scores.get(name) if row.measured else None)


def _memory(found: Comparison) -> Sheet:
    lines: dict[str, Callable[[Row], str]] = {
        "weights, planned, GiB": lambda row: _number(row.planned.weights_gib),
        "weights, GiB": lambda row: _number(row.weights_gib),
        "peak, planned at least, GiB": lambda row: _number(row.planned.peak_gib),
        "peak, GiB": lambda row: _number(row.measured.load.peak_gib if row.measured else None),
        "KV tokens, planned": lambda row: f"{row.planned.kv_tokens:,}",
        "KV tokens": lambda row: f"{row.measured.kv_tokens:,}" if row.measured and row.measured.kv_tokens else NOTHING,
        "KV, GiB": lambda row: _number(row.kv_gib),
        "KV used at most": lambda row: f"{max(run.kv_usage_peak for run in row.runs):.1%}" if row.runs else NOTHING,
        "preemptions": lambda row: f"{sum(run.preemptions for run in row.runs)}" if row.runs else NOTHING,
        "ready after, s": lambda row: f"{row.measured.start_seconds:.0f}" if row.measured else NOTHING,
    }
    return _by_scheme("Memory, planned and measured", found, lines)


def _by_scheme(title: str, found: Comparison, lines: Mapping[str, Callable[[Row], str]]) -> Sheet:
    """A column for each scheme: names and figures are long, and schemes are few."""
    rows = tuple((name, *map(figure, found.rows)) for name, figure in lines.items())
    return Sheet(title, ("", *(row.name for row in found.rows)), rows)


LOAD_FIGURES = {
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "tpot_p50_ms": "TPOT p50 ms",
    "tpot_p99_ms": "TPOT p99 ms",
    "e2e_p50_ms": "E2E p50 ms",
    "e2e_p99_ms": "E2E p99 ms",
    "requests_per_minute": "requests/min",
    "output_tokens_per_second": "tokens/s",
}
"""Figures of a point, and how tables name them."""


def _loads(found: Comparison) -> Iterator[Sheet]:
    """A table for each kind of traffic."""
    goodput = found.config.load.slo is not None
    figures = {**LOAD_FIGURES, **({"goodput_per_minute": "within the SLO/min"} if goodput else {})}
    for traffic in traffics(found.config.load):
        lines = {title: partial(_load_figure, traffic=traffic, name=name) for name, title in figures.items()}
        yield _by_scheme(f"Load, {traffic.label}", found, lines)


def _load_figure(row: Row, traffic: Traffic, name: str) -> str:
    return _interval(row.at(traffic, name))


def _figures(found: Comparison, row: Row) -> dict[str, object]:
    planned = row.planned
    figures: dict[str, object] = {
        "scheme": row.name, "missing": row.missing or "; ".join(map(_objection, row.lost)),
        "weights_gib": row.weights_gib, "kv_gib": row.kv_gib,
        "planned_weights_gib": planned.weights_gib, "planned_peak_gib": planned.peak_gib,
        "planned_kv_tokens": planned.kv_tokens,
        "card": planned.card, "verdict": planned.verdict, "planned_need_gib": planned.need_gib,
    }  # fmt: skip
    if row.measured is None:
        return figures
    figures |= {"peak_gib": row.measured.load.peak_gib, "kv_tokens": row.measured.kv_tokens}
    if (score := row.score) is not None:
        figures |= {"right": score.share, "right_low": score.low, "right_high": score.high, "questions": score.n}
    if (difference := found.difference(row)) is not None:
        figures |= {"difference": difference.difference, "lower": difference.lower, "upper": difference.upper}
    return figures | measured_figures(row)


def measured_figures(row: Row) -> dict[str, float]:
    """Means over runs by point, such as `concurrency-8.e2e_p99_ms`, and right answers by slice."""
    if row.measured is None:
        return {}
    figures = {f"right.{name}": score.share for name, score in row.measured.scores.items()}
    for point in row.points:
        names = [*LOAD_FIGURES, *(["goodput_per_minute"] if row.measured.load.load.slo else [])]
        figures |= {f"{point.traffic.label}.{name}": point.over_runs(name).mean for name in names}
    return figures


def _fullest(row: Row) -> LoadPoint | None:
    return row.measured.load.fullest if row.measured else None


def _interval(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    digits: Callable[[float], str] = (lambda x: f"{x:,.0f}") if found.mean >= 100 else (lambda x: f"{x:.1f}")
    if found.low is None or found.high is None:
        return digits(found.mean)
    return f"{digits(found.mean)} ± {digits(found.high - found.mean)}"


def _score(score: Score | None) -> str:
    return f"{score.share:.1%} ({score.low:.1%} to {score.high:.1%})" if score else NOTHING


def _difference(found: Difference | None) -> str:
    return f"{_points(found.difference)} ({_points(found.lower)} to {_points(found.upper)})" if found else NOTHING


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _points(share: float) -> str:
    return f"{share * 100:+.1f}"
