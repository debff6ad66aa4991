"""The arguments of `vlmops compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.comparison.rows import CONTESTANTS
from pipelines.errors import FAILED
from pipelines.settings import Settings

EXAMPLES = """examples:
  vlmops compare .vlmops/runs/smoke --schemes bf16 int8_w8a8
  vlmops compare configs/qwen3_vl_30b.yaml --schemes bf16 fp16 int8_w8a8 int4_w4a16 gptq_int4
  vlmops compare .vlmops/runs/smoke --schemes bf16 int4_w4a16 --set export.group_size=32 --set load.requests=50
  vlmops compare .vlmops/runs/smoke --schemes bf16 int8_w8a8 --questions 200 --out tables

A scheme that was measured is not measured again. Exit code 1 if one lacks figures, unless it does not fit the card.
"""


def add_compare(command: argparse.ArgumentParser) -> None:
    """Give a parser, which has `--set` already, the arguments and examples of the command."""
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    command.add_argument("target", type=Path, help="directory of a run, or a config: trained first if it is not there")
    names = "{" + ",".join(CONTESTANTS) + "}"
    command.add_argument(
        "--schemes", nargs="+", choices=CONTESTANTS, required=True, metavar="SCHEME", help=f"of {names}, in order"
    )
    command.add_argument("--out", type=Path, help="folder of the results; RUN/compare by default")
    command.add_argument("--questions", type=int, help="so many of the test questions, evenly spread; all by default")
    command.set_defaults(command=_compare)


def _compare(args: argparse.Namespace) -> int:
    from pipelines.comparison.compare import compare  # tables and budgets that no other command needs

    try:
        return compare(args.target, args.schemes, args.out, args.questions, args.overrides, Settings())
    except KeyboardInterrupt:
        sys.stderr.write("vlmops: stopped; the same command goes on with the scheme that it was at\n")
        return FAILED
