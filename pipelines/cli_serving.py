"""The commands that change what serves, and the one that looks after it: `promote`, `rollback`, `serving`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from pipelines import line
from pipelines.config_file import load_config
from pipelines.errors import VlmopsError
from pipelines.launch import run_module
from pipelines.settings import Settings

EXAMPLES = """examples:
  vlmops serving status       which version serves, since its last release
  vlmops serving stop         let requests under way end, then the engine; new ones wait
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
    if args.action == "status":
        return run_module(settings, "serving.service", args.action)
    with ExitStack() as block:
        try:
            settings = block.enter_context(line.tracked(settings))  # the others move aliases
        except VlmopsError as error:
            if args.action == "watch":
                raise
            sys.stderr.write(f"{error}\nthe alias `serving` stays as it is\n")
        module = ("serving.watch",) if args.action == "watch" else ("serving.service", args.action)
        return run_module(settings, *module)
