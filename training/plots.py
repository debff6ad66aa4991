"""Pictures for people: tokens per row, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from training.chat.preflight import Bucket


def plot_tokens(buckets: Sequence[Bucket], max_tokens: int, path: Path) -> None:
    """Write a histogram of tokens per row: how many tokens rows of each length hold, text below and visual above.

    Args:
        buckets: Of equal width.
        max_tokens: Longer rows were set aside; drawn as a line, outside the picture if far away.
        path: The PNG file.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    left = [bucket.first for bucket in buckets]
    width = buckets[0].last - buckets[0].first + 1
    text, visual = [b.text / 1000 for b in buckets], [b.visual / 1000 for b in buckets]
    axes.bar(left, text, width, align="edge", label="text")
    axes.bar(left, visual, width, bottom=text, align="edge", label="visual")
    axes.axvline(max_tokens, color="black", linestyle="--", linewidth=1, label=f"data.max_tokens {max_tokens:,}")
    axes.set_xlim(0, 1.05 * min(max_tokens, 2 * buckets[-1].last))
    rows = sum(bucket.rows for bucket in buckets)
    axes.set(xlabel="tokens per row", ylabel="thousand tokens", title=f"{rows:,} rows, by their length")
    axes.legend()
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
