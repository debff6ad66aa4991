"""`vlmops keys`: keys added, listed, rotated, revoked."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from pipelines.errors import DONE
from pipelines.keys.store import (
    CREDENTIAL,
    DEFAULT,
    PER_MINUTE,
    Key,
    add_key,
    keys_file,
    read_keys,
    revoke_key,
    rotate_key,
)
from pipelines.settings import Settings


def add_keys(command: argparse.ArgumentParser) -> None:
    """The verbs of `vlmops keys`."""
    verbs = command.add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="of whom it is for")
    add.add_argument("--per-minute", type=int, default=PER_MINUTE, metavar="N", help=f"requests; {PER_MINUTE}")
    add.add_argument("--burst", type=int, metavar="N", help="requests at once; a tenth of the minute's")
    add.add_argument("--days", type=float, metavar="N", help="until it expires; never, unless told")
    add.set_defaults(command=_add)
    verbs.add_parser("list", help="names, limits and standing of all keys").set_defaults(command=_list)
    rotate = verbs.add_parser("rotate", help="put another key in the place of one, which opens nothing any more")
    rotate.add_argument("name", help=f"{DEFAULT}: the key of this machine's own commands")
    rotate.set_defaults(command=_rotate)
    revoke = verbs.add_parser("revoke", help="let a key open nothing any more, at once")
    revoke.add_argument("name")
    revoke.set_defaults(command=_revoke)


def _add(args: argparse.Namespace) -> int:
    settings = Settings()
    key = add_key(settings, args.name, per_minute=args.per_minute, burst=args.burst, days=args.days)
    _show(key, settings)
    return DONE


def _show(key: str, settings: Settings) -> None:
    sys.stdout.write(f"{key}\n")  # alone on standard output, so that it can be piped to where it belongs
    sys.stderr.write(f"this is the only time that it is shown; its hash is in {keys_file(settings)}\n")


def _list(args: argparse.Namespace) -> int:  # noqa: ARG001  every command has the arguments
    table = Table("name", "requests a minute", "at once", "made", "expires", "standing", box=None)
    for key in read_keys(Settings()):
        table.add_row(*_row(key))
    Console().print(table)
    return DONE


def _row(key: Key) -> tuple[str, ...]:
    limited = key.per_minute is not None
    return (
        key.name,
        str(key.per_minute) if limited else "no limit",
        str(key.burst) if limited else "no limit",
        f"{key.created:%Y-%m-%d}",
        "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M} UTC",
        key.standing(datetime.now(UTC)),
    )


def _rotate(args: argparse.Namespace) -> int:
    settings = Settings()
    key = rotate_key(settings, args.name)
    if args.name == DEFAULT:
        sys.stderr.write(f"this machine's commands send the new key of {settings.state / 'secrets' / CREDENTIAL} now\n")
    else:
        _show(key, settings)
    return DONE


def _revoke(args: argparse.Namespace) -> int:
    revoke_key(Settings(), args.name)
    sys.stderr.write(f"{args.name} opens nothing any more\n")
    return DONE
