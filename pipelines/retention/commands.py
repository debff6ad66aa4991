"""`vlmops gc`, `vlmops backup`, `vlmops restore`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines import line
from pipelines.config_file import load_config
from pipelines.config_retention import Retention
from pipelines.errors import DONE, BadInput
from pipelines.retention.backup import back_up
from pipelines.retention.collect import collect
from pipelines.retention.database import Postgres, database
from pipelines.retention.last import Backup
from pipelines.retention.plan import Known, Verdict, plan
from pipelines.retention.registered import registered, to_serve
from pipelines.retention.restore import restore
from pipelines.retention.timer import Timer
from pipelines.settings import Settings
from pipelines.system.processes import end_cleanly_on_sigterm

GC_EXAMPLES = """examples:
  vlmops gc                   what would go, what stays, and why
  vlmops gc --yes             delete it

What serves, served before, is approved, waits for review, was released, or is of the last runs, stays.
"""

BACKUP_EXAMPLES = """examples:
  vlmops backup /mnt/backups/line-2026-11-24
  vlmops backup /mnt/backups/line-2026-11-24 --models     with what the versions behind aliases are served from
  vlmops backup /mnt/backups --every 24 --keep 14           one a day in it, by its date; the last 14 stay

The folder holds keys and secrets. Everything may run meanwhile.
"""


def add_gc(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops gc`."""
    command.add_argument("--yes", action="store_true", help="delete; else nothing is touched")
    _add_config(command, GC_EXAMPLES)
    command.set_defaults(command=_gc)


def add_backup(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops backup`."""
    command.add_argument("to", type=Path, metavar="DEST", help="a folder that is not there yet, on another disk")
    command.add_argument("--models", action="store_true", help="also the models behind aliases, which are large")
    command.add_argument("--every", type=float, metavar="HOURS", help="go on: backups in DEST, which is there")
    command.add_argument("--keep", type=int, default=14, metavar="N", help="with --every: how many stay; 14")
    _add_config(command, BACKUP_EXAMPLES)
    command.set_defaults(command=_backup)


def add_restore(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops restore`."""
    command.add_argument("source", type=Path, metavar="SRC", help="a folder that `vlmops backup` made")
    command.add_argument("--force", action="store_true", help="put aside what is in the home")
    _add_config(command)
    command.set_defaults(command=_restore)


def _add_config(command: argparse.ArgumentParser, examples: str | None = None) -> None:
    command.add_argument("--config", type=Path, default=Settings().config, help="whose section retention holds")
    command.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field"
    )
    command.epilog, command.formatter_class = examples, argparse.RawDescriptionHelpFormatter


def _gc(args: argparse.Namespace) -> int:
    rules = _rules(args)
    with line.tracked(Settings()) as settings:

        def look() -> Known:
            return Known(settings, rules, registered(settings), datetime.now(UTC))

        verdicts = collect(settings, look).verdicts if args.yes else plan(look())
    _show(verdicts, settings.home)
    going = sum(verdict.item.size for verdict in verdicts if verdict.goes and verdict.reason != "with its run")
    said = "were freed" if args.yes else "would be freed; nothing was deleted, --yes deletes"
    Console(soft_wrap=True).print(f"{_gigabytes(going)} GB {said}", highlight=False)
    return DONE


def _rules(args: argparse.Namespace) -> Retention:
    return load_config(args.config, tuple(args.overrides)).retention


def _show(verdicts: tuple[Verdict, ...], home: Path) -> None:
    table = Table("", "what", "GB", Column("where", overflow="fold"), "why", box=None)
    for verdict in sorted(verdicts, key=lambda verdict: not verdict.goes):
        item = verdict.item
        place = str(item.path.relative_to(home)) if item.path.is_relative_to(home) else str(item.path)
        row = ("goes" if verdict.goes else "stays", item.kind, _gigabytes(item.size), place, verdict.reason)
        table.add_row(*map(Text, row))
    Console().print(table)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _backup(args: argparse.Namespace) -> int:
    settings, rules = Settings(), _rules(args)
    make = partial(_make, settings, database(settings, rules.mlflow_database_from), rules, models=args.models)
    if args.every is not None:
        _go_on(settings, args, make)
    made = make(args.to)
    Console(soft_wrap=True).print(Text(f"{made.path}: {made.size / 1e6:.1f} MB in {made.seconds:.1f} s, {made.digest}"))
    return DONE


def _make(settings: Settings, source: Path | Postgres, rules: Retention, to: Path, *, models: bool) -> Backup:
    taken: tuple[Path, ...] = ()
    if models:
        with line.tracked(settings) as tracked:
            taken = to_serve(registered(tracked), settings)
    return back_up(settings, source, to, taken, artifacts=rules.mlflow_artifacts)


def _go_on(settings: Settings, args: argparse.Namespace, make: Callable[[Path], Backup]) -> NoReturn:
    if not (args.every > 0 and args.keep > 0):
        raise BadInput(f"--every {args.every:g} --keep {args.keep}: hours and a number above 0, such as 24 and 14")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    end_cleanly_on_sigterm()
    Timer(settings.home, args.to.resolve(), timedelta(hours=args.every), args.keep, make).run()


def _restore(args: argparse.Namespace) -> int:
    settings, console = Settings(), Console(soft_wrap=True)
    rules = _rules(args)
    target = database(settings, rules.mlflow_database_from)
    done = restore(settings, args.source, target, force=args.force, artifacts=rules.mlflow_artifacts)
    console.print(Text(f"{settings.home} is as {done.source} has it"))
    if done.aside is not None:
        console.print(Text(f"what was there lies in {done.aside}"))
    if done.made_for != settings.home:
        console.print(Text(f"versions name files below {done.made_for}; they serve where that home is"))
    return DONE
