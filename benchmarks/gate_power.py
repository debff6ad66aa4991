"""What the gate can tell: how often a candidate passes, by items, discordant answers, true difference and margin.

Simulated with the gate's own bounds (95 %, one-sided). A row at the margin is the error: a candidate that must not pass
does. Then the same for grades, where items change by a third. The last tables say how many items let a candidate as
good as the reference pass in four of five cases.

usage: python benchmarks/gate_power.py [--trials 2000] [--graded-trials 400]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipelines.grades import Grades, items_to_decide, mean_bounds
from pipelines.statistics import paired_bounds, planned_items

ITEMS = (100, 200, 400, 800, 1600, 3200)
MARGINS = (0.01, 0.02, 0.03, 0.05)
DISCORDANT = (0.02, 0.05, 0.10)
"""Shares of the items that only one of the two answers rightly."""

GRADED_ITEMS = (50, 100, 200, 400, 800)
GRADED_MARGINS = (0.02, 0.05)
CHANGED = (0.10, 0.30, 0.60)
"""Shares of the items whose grade is a third higher or lower."""


def power(n: int, discordant: float, difference: float, margin: float, trials: int) -> float:
    """How often the gate passes, 0 to 1."""
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=trials)
    seen = Counter((int(wins), int(losses)) for wins, losses, _ in drawn)
    return sum(times for counts, times in seen.items() if paired_bounds(*counts, n)[0] > -margin) / trials


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def show_power(margin: float, trials: int) -> None:
    """Passes for one margin: equal models, half the margin lost, all of it lost."""
    rows = [
        [f"{discordant:.0%}", f"{-100 * lost:g} points" if lost else "none", *_passes(discordant, lost, margin, trials)]
        for discordant in DISCORDANT
        for lost in (0.0, margin / 2, margin)
        if lost <= discordant
    ]
    columns = ["discordant", "true difference", *(f"n = {n}" for n in ITEMS)]
    show(f"Passes with a margin of {margin * 100:g} points", columns, rows)


def _passes(discordant: float, lost: float, margin: float, trials: int) -> list[str]:
    return [f"{power(n, discordant, -lost, margin, trials):.1%}" for n in ITEMS]


def graded_power(n: int, changed: float, difference: float, margin: float, trials: int) -> float:
    """How often the gate passes a candidate with grades, 0 to 1."""
    shares = [changed / 2 + 1.5 * difference, changed / 2 - 1.5 * difference, 1 - changed]
    passes = 0
    for trial in range(trials):
        drawn = np.random.default_rng(trial).choice([1 / 3, -1 / 3, 0.0], p=shares, size=n)
        clusters = [Grades(float(change), 1) for change in drawn]
        passes += mean_bounds(clusters, resamples=999, seed=trial)[0] > -margin
    return passes / trials


def show_graded_power(margin: float, trials: int) -> None:
    """Passes for one margin: equal models, half the margin lost, all of it lost."""
    rows = [
        [f"{changed:.0%}", f"{-100 * lost:g} points" if lost else "none"]
        + [f"{graded_power(n, changed, -lost, margin, trials):.1%}" for n in GRADED_ITEMS]
        for changed in CHANGED
        for lost in (0.0, margin / 2, margin)
        if 3 * lost <= changed
    ]
    columns = ["changed by a third", "true difference", *(f"n = {n}" for n in GRADED_ITEMS)]
    show(f"Passes with a margin of {margin * 100:g} points, graded", columns, rows)


def show_graded_items() -> None:
    """Items for a power of 80 %, when grades change both ways alike."""
    rows = [[f"{changed:.0%}", *(_needed_grades(changed, margin) for margin in MARGINS)] for changed in CHANGED]
    columns = ["changed by a third", *(f"margin {margin * 100:g} points" for margin in MARGINS)]
    show("Graded items that let an equally good candidate pass in four of five cases", columns, rows)


def _needed_grades(changed: float, margin: float) -> str:
    """From twenty items, so that there are fewer than are needed."""
    each = round(10 * changed)
    changes = [1 / 3] * each + [-1 / 3] * each + [0.0] * (20 - 2 * each)
    return f"{items_to_decide([Grades(change, 1) for change in changes], -margin):,}"


def show_items() -> None:
    """Items for a power of 80 %, when the two are equally good."""
    rows = [[f"{discordant:.0%}", *(_needed(discordant, margin) for margin in MARGINS)] for discordant in DISCORDANT]
    columns = ["discordant", *(f"margin {margin * 100:g} points" for margin in MARGINS)]
    show("Items that let an equally good candidate pass in four of five cases", columns, rows)


def _needed(discordant: float, margin: float) -> str:
    return f"{math.ceil(planned_items(discordant / 2, discordant / 2, -margin)):,}"


def main() -> None:
    """Print every table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=2000)
    arguments.add_argument("--graded-trials", type=int, default=400)
    parsed = arguments.parse_args()
    trials, graded_trials = parsed.trials, parsed.graded_trials
    began = time.monotonic()
    for margin in MARGINS:
        show_power(margin, trials)
    show_items()
    for margin in GRADED_MARGINS:
        show_graded_power(margin, graded_trials)
    show_graded_items()
    print(f"\n{trials} trials a cell, {graded_trials} with grades, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
