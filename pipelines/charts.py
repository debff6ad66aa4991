"""Pictures for people: what a report or a training looked like."""

from __future__ import annotations

from pathlib import Path

from pipelines.evaluation import EvalReport, Evaluation

LABELS = {
    "base": "base {}",
    "merged": "fine-tuned {}",
    "champion": "champion {}",
    "candidate": "fine-tuned {}, as served",
}
"""Subjects in the order they are drawn, with a place for the scheme."""

SCHEME_LABELS: dict[str, str] = {
    "bf16": "bf16",
    "int8_w8a8": "INT8",
    "int8_w8a16": "INT8 weights",
    "int4_w4a16": "INT4 weights",
    "gptq_int8": "GPTQ INT8",
    "gptq_int4": "GPTQ INT4",
    "smoothquant_int8": "SmoothQuant INT8",
}
"""Of every scheme, as people name it."""


def label(evaluation: Evaluation) -> str:
    """What was measured, in a few words."""
    return LABELS[evaluation.subject].format(SCHEME_LABELS[evaluation.scheme])


def accuracy_chart(report: EvalReport, path: Path) -> None:
    """Right answers by slice, a bar per model, with 95 % intervals."""
    from matplotlib.figure import Figure

    evaluations = [e for name in LABELS if (e := report.subject(name)) is not None]
    slices = sorted({name for evaluation in evaluations for name in evaluation.scores})
    figure = Figure(figsize=(1.5 + 1.8 * len(slices), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(evaluations)
    for number, evaluation in enumerate(evaluations):
        scores = [evaluation.scores[name] for name in slices]
        shares = [score.share for score in scores]
        axes.bar(
            [at + (number - (len(evaluations) - 1) / 2) * width for at in range(len(slices))],
            shares,
            width,
            yerr=[
                [max(0.0, share - score.low) for share, score in zip(shares, scores, strict=True)],
                [max(0.0, score.high - share) for share, score in zip(shares, scores, strict=True)],
            ],
            capsize=3,
            label=label(evaluation),
        )
    counts = [evaluations[0].scores[name].n for name in slices]
    names = [f"{name}\nn = {n}" for name, n in zip(slices, counts, strict=True)]
    axes.set_xticks(range(len(slices)), names, parse_math=False)  # a slice may be named `$`
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("right answers")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(evaluations), frameon=False)
    figure.savefig(path, dpi=120)
