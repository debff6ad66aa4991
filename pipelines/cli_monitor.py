"""The command `vlmops monitor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.errors import DONE
from pipelines.launch import run_module
from pipelines.settings import Settings

EXAMPLES = """examples:
  vlmops monitor                                      one look: what serves, the engine, the card, the disks
  vlmops monitor --every 60                           again and again; alerts go to the sinks of the config
  vlmops monitor --every 15 --listen 127.0.0.1:8805   for Prometheus, which reads configs/monitoring/prometheus.yml
"""


def add_monitor(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops monitor`."""
    command.add_argument("--every", type=_positive, metavar="SECONDS", help="look again and again; once by default")
    command.add_argument("--listen", metavar="HOST:PORT", help="tell Prometheus there, while it goes on looking")
    command.add_argument("--config", type=Path, default=Settings().config, help="whose section monitoring holds")
    command.epilog = EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.set_defaults(command=_monitor)


def _positive(text: str) -> float:
    if (seconds := float(text)) <= 0:
        raise ValueError
    return seconds


def _monitor(args: argparse.Namespace) -> int:
    named = {"config": args.config, "every": args.every, "listen": args.listen}
    options = [f"--{name}={value}" for name, value in named.items() if value is not None]
    try:
        return run_module(Settings(), "serving.monitor", *options)
    except KeyboardInterrupt:
        return DONE  # that is how a watch ends
