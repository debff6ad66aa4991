"""`vlmops alert test`: a message to one sink or to all, so that the first real one is not the first."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.alerts.alert import Alert, Notice
from pipelines.alerts.delivery import Delivery, Job, deliver
from pipelines.alerts.message import compose
from pipelines.config_alerts import Alerts
from pipelines.config_file import load_config
from pipelines.errors import DONE, FAILED, BadInput
from pipelines.settings import Settings

TEST = Alert("Test", "critical", "a test by `vlmops alert test`; nothing is wrong", {}, "docs/operations.md")


def add_alert(command: argparse.ArgumentParser) -> None:
    """The verbs of `vlmops alert`."""
    verbs = command.add_subparsers(required=True, metavar="VERB")
    test = verbs.add_parser("test", help="send a message to one sink of the config, or to all")
    test.add_argument("sink", nargs="?", help="its name; all by default")
    test.add_argument("--config", type=Path, default=Settings().config, help="whose section alerts holds")
    test.set_defaults(command=_test)


def _test(args: argparse.Namespace) -> int:
    deliveries = send_test(load_config(args.config).alerts, args.sink)
    table = Table("sink", "seconds", "outcome", box=None)
    for delivery in deliveries:
        table.add_row(delivery.sink, f"{delivery.seconds:.1f}", Text(delivery.error or "taken"))
    Console().print(table)
    return FAILED if any(delivery.error is not None for delivery in deliveries) else DONE


def send_test(config: Alerts, sink: str | None) -> tuple[Delivery, ...]:
    """Send a test, whatever the sink's severity and limits, and leave no trace in the state.

    Args:
        config: The section `alerts`.
        sink: Its name. None: all.

    Raises:
        BadInput: There is no such sink.
    """
    chosen = [known for known in config.sinks if sink in (None, known.name)]
    if not chosen:
        names = ", ".join(known.name for known in config.sinks) or "none"
        raise BadInput(f"alerts.sinks has no {sink}; there are: {names}")
    now = datetime.now(UTC)
    message = compose([Notice(kind="firing", alert=TEST, time=now, since=now)])
    return tuple(deliver({known.name: Job(known, message) for known in chosen}).values())
