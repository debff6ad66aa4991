"""Pictures for people: tokens per row, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_tokens(tokens: Sequence[int], path: Path) -> None:
    """Write a histogram of tokens per row."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(tokens, bins=min(40, max(tokens) - min(tokens) + 1))
    axes.set(xlabel="tokens per row", ylabel="rows", title=f"{len(tokens)} rows, longest {max(tokens)} tokens")
    figure.savefig(path)


def plot_loss(history: Sequence[dict[str, float]], path: Path) -> None:
    """Write the curves of the training and the evaluation loss.

    Args:
        history: Log events with `step` and `loss` or `eval_loss`, in nats per answer token.
        path: The PNG file.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for key, style in (("loss", "-"), ("eval_loss", "o-")):
        points = [(event["step"], event[key]) for event in history if key in event]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=key.replace("_", " "), linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="nats per answer token", yscale="log")
    axes.legend()
    figure.savefig(path)
