"""The command `vlmops stack`: the embedded stack until Ctrl-C, or the file that the production stack needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.doctor import require_fit
from pipelines.errors import DONE
from pipelines.settings import ROOT, Settings
from pipelines.stack.env_file import write_env_file

EXAMPLES = """examples:
  vlmops stack                 Airflow, MLflow and the serving front here, until Ctrl-C; no containers
  vlmops stack init            write .env for docker-compose.yml: generated secrets, mode 600
  docker compose up -d         then start what COMPOSE_PROFILES in it names
"""


def add_stack(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops stack`."""
    command.epilog = EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(command=_run)
    init = command.add_subparsers(metavar="[init]").add_parser("init", help="write .env for docker-compose.yml")
    init.add_argument("--out", type=Path, default=ROOT / ".env", help=".env beside docker-compose.yml by default")
    init.add_argument("--force", action="store_true", help="replace it: for volumes that are new too")
    init.set_defaults(command=_init)


def _run(args: argparse.Namespace) -> int:  # noqa: ARG001  every command has the arguments
    from pipelines.embedded.stack import run_stack  # its parts are not needed by any other command

    require_fit(Settings())
    return run_stack(Settings())


def _init(args: argparse.Namespace) -> int:
    write_env_file(args.out, force=args.force)
    sys.stdout.write(f"{args.out}: secrets for this machine; look through it, then `docker compose up -d`\n")
    return DONE
