"""Many retrains on many cards: time, cost, utilisation, and what saturates first; simulated, with closed forms beside.

Prints Markdown tables and draws docs/scaling.png. Needs no card; `--slower 3` is for a card that takes three times as
long as the H200 that was measured, `--price 1.2` is what a card costs an hour, in any currency.

usage: python -m benchmarks.scaling [--slower 1] [--disks 1] [--price 1] [--repetitions 20] [--picture docs/scaling.png]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from pipelines.scaling.measured import Figures
from pipelines.scaling.queueing import limits, saturating_cards
from pipelines.scaling.retrain import retrain
from pipelines.scaling.study import arrivals, expected_wait, night, waits

MODELS = (1, 10, 100)
CARDS = (1, 2, 4, 8, 16, 32, 64)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Shares of what the cards can do, for the steady state."""
STEADY_CARDS = (1, 4, 16)
STEADY_RETRAINS = 4000
"""Of one repetition."""
RUSH = 3000
"""Retrains due at once that show what a line does when it is full."""


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def show_figures(figures: Figures) -> None:
    """What goes in, and where it comes from."""
    rows = [
        [f"`{one.name}`", f"{getattr(figures, one.name):,.4g} {one.metadata['unit']}", one.metadata["source"]]
        for one in fields(figures)
    ]
    show("What goes in", ["figure", "value", "source"], rows)


def show_limits(figures: Figures, disks: int) -> None:
    """One retrain, and what keeps up with how many."""
    one = retrain(figures)
    load, export, served = figures.disk_s
    rows = [
        ["fine-tuning", f"{figures.finetune_s:,.0f}", "card"],
        [
            "loading the base / export / loading what is served",
            f"{load:.0f} / {export:.0f} / {served:.0f}",
            "disk, card",
        ],
        ["evaluation", f"{figures.evaluate_s:,.0f}", "card"],
        ["**a card, together**", f"**{one.card_s:,.0f}**", ""],
        ["tasks scheduled", f"{one.scheduler_s:.1f}", "scheduler"],
        ["judged and registered", f"{one.registry_s:.1f}", "registry"],
    ]
    show("One retrain", ["part", "seconds", "occupies"], rows)
    rows = [
        [f"{cards}", *(f"{limit.part}: {limit.per_hour:,.1f}" for limit in limits(one, cards, disks))]
        for cards in CARDS
    ]
    show(
        f"Retrains an hour, the tightest limit first; {disks} disk(s) shared",
        ["cards", "1st", "2nd", "3rd", "4th"],
        rows,
    )
    edge = saturating_cards(one, disks)
    line = RUSH / night(figures, RUSH, edge, disks, 1).hours
    print(f"\nFrom {edge} cards on they are not the tightest bound; simulated, so many do {line:.1f} retrains an hour.")


def show_nights(figures: Figures, disks: int, price: float, repetitions: int) -> dict[tuple[int, bool], list[float]]:
    """All due at once; returns hours by the number of models and whether they share disks."""
    hours: dict[tuple[int, bool], list[float]] = {}
    rows = []
    for models in MODELS:
        for cards in CARDS:
            own = night(figures, models, cards, None, repetitions)
            shared = night(figures, models, cards, disks, repetitions)
            hours.setdefault((models, False), []).append(own.hours)
            hours.setdefault((models, True), []).append(shared.hours)
            rows.append([
                f"{models}", f"{cards}",
                f"{own.hours:.2f}", f"{own.utilisation:.0%}", f"{price * own.held_card_hours:.1f}",
                f"{shared.hours:.2f}", f"{shared.utilisation:.0%}", f"{price * shared.held_card_hours:.1f}",
            ])  # fmt: skip
    columns = [
        "models",
        "cards",
        "hours",
        "cards busy",
        "cost",
        f"sharing {disks} disk(s): hours",
        "cards held",
        "cost",
    ]
    show(f"All due at once, {price:g} a card and hour", columns, rows)
    return hours


def show_steady(figures: Figures, disks: int, repetitions: int) -> dict[int, list[tuple[float, float, float]]]:
    """Due at any time; returns retrains an hour, minutes of waiting and half their interval, by the number of cards."""
    seen: dict[int, list[tuple[float, float, float]]] = {}
    rows = []
    for cards in STEADY_CARDS:
        for load in LOADS:
            rate = load * cards / retrain(figures).card_s
            make = partial(arrivals, figures, rate, STEADY_RETRAINS)
            own = waits(make, cards, None, repetitions, figures.scheduler_s)
            shared = waits(make, cards, disks, repetitions, figures.scheduler_s)
            seen.setdefault(cards, []).append((3600 * rate, own.value / 60, own.half_width / 60))
            rows.append([
                f"{cards}", f"{load:.0%}", f"{3600 * rate:.2f}", f"{86_400 * rate:.0f}",
                f"{expected_wait(figures, rate, cards) / 60:.1f}",
                f"{own.value / 60:.1f} ± {own.half_width / 60:.1f}",
                f"{shared.value / 60:.1f} ± {shared.half_width / 60:.1f}",
            ])  # fmt: skip
    columns = ["cards", "load", "retrains/h", "a day", "Allen-Cunneen", "simulated", f"sharing {disks} disk(s)"]
    show("Due at any time: mean minutes that a retrain waits for its card, with 99 % intervals", columns, rows)
    return seen


def draw(
    path: Path,
    figures: Figures,
    hours: dict[tuple[int, bool], list[float]],
    steady: dict[int, list[tuple[float, float, float]]],
    disks: int,
) -> None:
    """Hours by cards, and waiting by arrival rate, as one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, models in enumerate(MODELS):
        left.plot(CARDS, hours[models, False], "o-", color=f"C{number}", label=f"models: {models}")
        left.plot(CARDS, hours[models, True], "o--", color=f"C{number}", mfc="white")
    left.axvline(saturating_cards(retrain(figures), disks), color="grey", lw=0.8, ls=":")
    left.set(xscale="log", yscale="log", xlabel="cards", ylabel="hours until all are registered")
    left.set_title(f"all due at once; dashed: {disks} disk(s) shared")
    left.set_xticks(CARDS, [str(cards) for cards in CARDS])
    left.legend(frameon=False)
    for number, (cards, points) in enumerate(steady.items()):
        shares = [share / 100 for share in range(5, 97)]
        rates = [share * cards / retrain(figures).card_s for share in shares]
        right.plot(shares, [expected_wait(figures, rate, cards) / 60 for rate in rates], color=f"C{number}")
        right.errorbar(
            LOADS, [wait for _, wait, _ in points], yerr=[half for *_, half in points],
            fmt="o", ms=4, capsize=3, color=f"C{number}", label=f"cards: {cards}",
        )  # fmt: skip
    right.set(xlabel="load: arrivals x seconds on a card / cards", ylabel="minutes of waiting, mean", yscale="log")
    right.set_ylim(bottom=0.05)
    right.set_title("due at any time; lines: Allen-Cunneen, points: simulated")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print every table and draw the picture."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slower", type=float, default=1.0, help="times an H200's seconds")
    arguments.add_argument("--disks", type=int, default=1, help="that all cards share")
    arguments.add_argument("--price", type=float, default=1.0, help="of a card for an hour")
    arguments.add_argument("--repetitions", type=int, default=20)
    arguments.add_argument("--picture", type=Path, help="where to draw it; nowhere by default")
    parsed = arguments.parse_args()
    began = time.monotonic()
    figures = Figures(slower=parsed.slower)
    show_figures(figures)
    show_limits(figures, parsed.disks)
    hours = show_nights(figures, parsed.disks, parsed.price, parsed.repetitions)
    steady = show_steady(figures, parsed.disks, parsed.repetitions)
    if parsed.picture:
        draw(parsed.picture, figures, hours, steady, parsed.disks)
    print(f"\n{parsed.repetitions} repetitions, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
