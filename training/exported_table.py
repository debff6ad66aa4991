"""What a person sees of a finished export: a table of facts, and the line that serves it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.parity import Parity

if TYPE_CHECKING:
    from training.served_adapter import ServedAdapter
    from training.standalone import Outcome


def show_export(outcome: Outcome) -> None:
    """Print what came out, and how to serve it."""
    _show(str(outcome.path), dict(_facts(outcome)))
    _say(shlex.join(["vllm", "serve", str(outcome.path)]))


def show_adapter(adapter: ServedAdapter) -> None:
    """Print the same of an adapter, with the request that loads it into a running engine."""
    facts = {
        "rank": str(adapter.rank),
        "tensors": f"{adapter.tensors}, bf16",
        "size": f"{adapter.size_bytes / 1e6:,.1f} MB",
        "experts": "updated, in stacks" if adapter.updates_experts else "not updated",
    }
    _show(str(adapter.path), facts)
    _say(adapter.command)
    _say("or, where an engine runs with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, POST /v1/load_lora_adapter:")
    _say(json.dumps(adapter.request))


def _facts(outcome: Outcome) -> Iterator[tuple[str, str]]:
    name, figures = outcome.path.name, outcome.made.figures
    scheme = outcome.made.releases[name].scheme
    yield "scheme", f"{scheme.name}, groups of {scheme.group}" if scheme.group else scheme.name
    yield "size", f"{outcome.made.size(name) / 1e6:,.1f} MB"
    speed = figures.read_bytes / 1e6 / figures.seconds
    yield "written in", f"{figures.seconds:,.1f} s, {speed:,.0f} MB/s of the base's weights"
    yield "host memory", f"{figures.peak_rss_gib:.2f} GiB at the most while it was written"
    if figures.errors:
        checked = "compared with the merged model" if scheme.calibrated else "computed again in float64"
        yield "quantised", f"{outcome.made.quantized(name):,} tensors, {outcome.made.verified} {checked}"
        yield "rounding", f"relative error {fmean(figures.errors):.4f}"
    yield "update", "none" if outcome.update_norm is None else f"{outcome.update_norm:.3g} of the weights' norm"
    yield from _agreements(outcome.parity)
    yield "manifest", outcome.digest[:16]


def _agreements(parity: Parity | None) -> Iterator[tuple[str, str]]:
    """Each form of the model against the base in bf16 with its adapter beside it."""
    if parity is None:
        yield "predictions", "not compared"
        return
    for name, found in (("nf4", parity.nf4), ("merged", parity.merged), ("exported", parity.exported)):
        if found:
            figures = f"KL {found.mean_kl:.2g} nats, {found.top1:.1%} of {found.positions} tokens the same"
            yield f"predictions, {name}", figures


def _show(title: str, facts: dict[str, str]) -> None:
    _say(title)
    table = Table(box=None, show_header=False)
    for name, fact in facts.items():
        table.add_row(Text(name), Text(fact))
    Console().print(table)


def _say(text: str) -> None:
    """On one line, to be copied."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
