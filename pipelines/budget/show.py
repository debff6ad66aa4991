"""`vlmops plan`: the plan of a config as tables."""

from __future__ import annotations

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.budget.base import find_base
from pipelines.budget.demand import GIB, Demand
from pipelines.budget.exporting import HostNeed
from pipelines.budget.plan import Side, make_plan
from pipelines.config import Config
from pipelines.errors import BAD_INPUT, DONE
from pipelines.settings import Settings

STYLES = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def show_plan(config: Config, settings: Settings) -> int:
    """Print what a config needs.

    Returns:
        The exit code: bad input if it does not fit.

    Raises:
        BadInput: The base is not here, and its shape is not known.
    """
    plan, console = make_plan(config, find_base(config.model.source, settings)), Console()
    _say(console, f", {plan.base.parameters.total / 1e6:,.1f} M parameters", (config.model.source, "bold"))
    _say(console, f"from {plan.base.seen}")
    _say(console, f"hardware {config.hardware.name}: {config.hardware.memory_gib:g} GiB")
    for side in plan.sides:
        console.print()
        console.print(_table(side.demand))
        _show_verdict(console, side)
    console.print()
    _show_host(console, plan.host)
    return DONE if plan.fits else BAD_INPUT


def _table(demand: Demand) -> Table:
    """A line for each part; those that do not count are dim, and in brackets."""
    table = Table("part", "GiB", "", box=None, title=demand.name, title_justify="left")
    table.columns[1].justify = "right"
    for line in demand.lines:
        size = f"{line.nbytes / GIB:.2f}"
        if demand.counts(line):
            table.add_row(Text(line.name), f"{size} ", Text(line.why))
        else:
            reason = "not counted" if line.kind == "apart" else "at another time"
            table.add_row(Text(line.name), f"({size})", Text(f"{line.why}; {reason}"), style="dim")
    return table


def _show_verdict(console: Console, side: Side) -> None:
    verdict, need, limit = side.demand.verdict, side.demand.nbytes / GIB, side.demand.limit_bytes / GIB
    _say(console, f": {need:.1f} of {limit:.1f} GiB", (verdict, STYLES[verdict]))
    for way in side.lower:
        _say(console, f"  to make it fit: {way}")
    for setting in side.room:
        _say(console, f"  there is room for {setting}")


def _show_host(console: Console, need: HostNeed) -> None:
    """Beside it what is here: a hint, where the plan is for this machine."""
    here = psutil.virtual_memory().total / GIB
    _say(console, f"export: {need.memory_bytes / GIB:.1f} GiB of host memory, as {need.why}; here are {here:.1f} GiB")
    for name, nbytes in need.files.items():
        _say(console, f"  disk: {nbytes / 1e9:.1f} GB for {name}")
    _say(console, f"  disk: {need.disk_bytes / 1e9:.1f} GB in all, beside the base itself")


def _say(console: Console, text: str, *before: tuple[str, str]) -> None:
    """A line, after words with a style. Paths and names are shown as they are: brackets in them are no markup."""
    console.print(Text.assemble(*before, text), soft_wrap=True)
