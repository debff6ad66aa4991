"""The commands that change what serves, and the one that looks after it: `promote`, `rollback`, `serving`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import line
from pipelines.config_file import load_config
from pipelines.launch import run_module
from pipelines.settings import Settings

EXAMPLES = """examples:
  vlmops serving status       which version serves, since its last release
  vlmops serving stop         end the engine; requests wait
  vlmops serving start        start again what was released last
  vlmops serving watch        start it again when it ends, go back when that does not help; until Ctrl-C
"""

ACTIONS = ("status", "start", "stop", "watch")


def add_promote(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops promote`."""
    _add_config(command)
    command.add_argument("--version", type=int, help="approve this version first")
    command.add_argument("--reason", default="vlmops promote", help="why, for the registry")
    command.set_defaults(command=_promote)


def add_rollback(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops rollback`."""
    _add_config(command)
    command.add_argument("--reason", default="vlmops rollback", help="why, for the registry")
    command.set_defaults(command=_rollback)


def add_serving(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops serving`."""
    command.add_argument("action", choices=ACTIONS)
    command.epilog = EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(command=_serving)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, default=Settings().config, help="names the registered model")


def _promote(args: argparse.Namespace) -> int:
    return line.promote(load_config(args.config), args.version, args.reason, Settings())


def _rollback(args: argparse.Namespace) -> int:
    return line.rollback(load_config(args.config), args.reason, Settings())


def _serving(args: argparse.Namespace) -> int:
    settings = Settings()
    if args.action != "watch":
        return run_module(settings, "serving.service", args.action)
    with line.tracked(settings) as tracked_settings:  # to go back moves aliases
        return run_module(tracked_settings, "serving.watch")
