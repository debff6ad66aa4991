"""What a data set will be like to train on, as figures: written to `report.json` before any GPU is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import ceil

from pipelines.artifact import Artifact
from pipelines.artifacts import Reject
from pipelines.config import Images, Train
from training.chat.batches import Steps, cut
from training.chat.checking import Counted
from training.chat.overlap import count_shared_images

BUCKETS = 64
"""At most, in the histogram of tokens."""

EXAMPLES = 3
"""Of each reason, in the report; `rejects.jsonl` has all."""

Size = tuple[int, int]
"""Width and height of an image, in pixels."""


class Reason(Artifact):
    """Why rows were set aside, and some of them."""

    reason: str
    count: int
    examples: tuple[Reject, ...]


class Bucket(Artifact):
    """Rows of about the same length."""

    first: int
    """Fewest tokens of a row in it."""

    last: int
    """Most tokens of a row in it."""

    rows: int
    text: int
    """Text tokens of all its rows."""

    visual: int
    """Visual tokens of all its rows."""


class Tokens(Artifact):
    """Length of rows, in tokens."""

    total: int
    visual_share: float
    p50: int
    p90: int
    p99: int
    max: int
    buckets: tuple[Bucket, ...]


class Pictures(Artifact):
    """The images of all rows."""

    total: int
    distinct: int
    """By their pixels."""

    per_row: dict[int, int]
    """How many rows show so many images."""

    smallest: Size | None
    median: Size | None
    largest: Size | None
    """By number of pixels; None without images."""

    shrunk: int
    """Larger than images.max_pixels."""

    enlarged: int
    """Smaller than images.min_pixels."""


class Epoch(Artifact):
    """One pass over the training split."""

    steps: int
    passes: float
    """Of the whole run of train.steps."""

    tokens_per_step: float
    micro_batches_per_step: float
    padding_share: float


class Report(Artifact):
    """The whole report."""

    source: str
    styles: dict[str, int]
    """Rows by how they are written."""

    rows: dict[str, dict[str, int]]
    """By split and slice."""

    rejects: tuple[Reason, ...]
    tokens: Tokens
    images: Pictures
    shared_image_rows: int
    """Training rows with an image that a held-out row shows too, with another question."""

    epoch: Epoch

    def key_figures(self) -> dict[str, float]:
        """What the step hands on, for MLflow."""
        return {
            "rejected": sum(reason.count for reason in self.rejects),
            "tokens_p50": self.tokens.p50,
            "tokens_p90": self.tokens.p90,
            "tokens_p99": self.tokens.p99,
            "tokens_max": self.tokens.max,
            "images": self.images.total,
            "shrunk_images": self.images.shrunk,
            "text_only_rows": self.images.per_row.get(0, 0),
            "shared_image_rows": self.shared_image_rows,
            "steps_per_epoch": self.epoch.steps,
            "micro_batches_per_step": self.epoch.micro_batches_per_step,
            "padding_share": self.epoch.padding_share,
        }


def report_on(source: str, rows: Sequence[Counted], rejects: Sequence[Reject], images: Images, train: Train) -> Report:
    """Count everything.

    Args:
        source: Of the data.
        rows: Usable ones in their splits, some of them in `train`.
        rejects: The others.
        images: Pixel limits.
        train: Batch size, budget, steps and seed.
    """
    per_slice = Counter((str(counted.row.split), counted.row.slice) for counted in rows)
    return Report(
        source=source,
        styles=dict(Counter(counted.row.style for counted in rows)),
        rows={split: {s: n for (_, s), n in group} for split, group in groupby(sorted(per_slice.items()), _split_of)},
        rejects=tuple(summarize(rejects)),
        tokens=_tokens(rows),
        images=_pictures(rows, images),
        shared_image_rows=count_shared_images([counted.row for counted in rows]),
        epoch=_epoch([counted.tokens for counted in rows if counted.row.split == "train"], train),
    )


def summarize(rejects: Iterable[Reject]) -> list[Reason]:
    """Rejects by reason, the most frequent first."""
    by_reason: dict[str, list[Reject]] = {}
    for reject in rejects:
        by_reason.setdefault(reject.reason, []).append(reject)
    reasons = [Reason(reason=r, count=len(all_), examples=tuple(all_[:EXAMPLES])) for r, all_ in by_reason.items()]
    return sorted(reasons, key=lambda reason: -reason.count)


def _split_of(entry: tuple[tuple[str, str], int]) -> str:
    return entry[0][0]


def _tokens(rows: Sequence[Counted]) -> Tokens:
    lengths = sorted(counted.tokens for counted in rows)
    total = sum(lengths)
    return Tokens(
        total=total,
        visual_share=sum(counted.visual for counted in rows) / total,
        p50=_percentile(lengths, 50),
        p90=_percentile(lengths, 90),
        p99=_percentile(lengths, 99),
        max=lengths[-1],
        buckets=tuple(_buckets(rows, lengths[-1])),
    )


def _percentile(ordered: Sequence[int], percent: int) -> int:
    """The least value that so many percent of the values do not exceed."""
    return ordered[ceil(percent / 100 * len(ordered)) - 1]


def _buckets(rows: Sequence[Counted], longest: int) -> Iterable[Bucket]:
    width = 1
    while longest // width >= BUCKETS:
        width *= 2
    within: list[list[Counted]] = [[] for _ in range(longest // width + 1)]
    for counted in rows:
        within[counted.tokens // width].append(counted)
    for i, bucket in enumerate(within):
        visual = sum(counted.visual for counted in bucket)
        text = sum(counted.tokens for counted in bucket) - visual
        yield Bucket(first=i * width, last=(i + 1) * width - 1, rows=len(bucket), text=text, visual=visual)


def _pictures(rows: Sequence[Counted], limits: Images) -> Pictures:
    pictures = [picture for counted in rows for picture in counted.row.pictures]
    sizes = sorted((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    return Pictures(
        total=len(pictures),
        distinct=len({picture.pixels for picture in pictures}),
        per_row=dict(sorted(Counter(len(counted.row.pictures) for counted in rows).items())),
        smallest=sizes[0] if sizes else None,
        median=sizes[len(sizes) // 2] if sizes else None,
        largest=sizes[-1] if sizes else None,
        shrunk=sum(width * height > limits.max_pixels for width, height in sizes),
        enlarged=sum(width * height < limits.min_pixels for width, height in sizes),
    )


def _epoch(lengths: Sequence[int], train: Train) -> Epoch:
    """The first pass as the trainer will cut it, on one device."""
    steps = ceil(len(lengths) / train.batch_size)
    batches = area = tokens = 0
    for step in Steps(len(lengths), train.batch_size, steps, train.seed, slice(None)):
        ordered = sorted((lengths[i] for i in step), reverse=True)
        runs = cut(ordered, train.tokens_per_batch)
        batches += len(runs)
        area += sum(len(run) * ordered[run.start] for run in runs)
        tokens += sum(ordered)
    return Epoch(
        steps=steps,
        passes=train.steps * train.batch_size / len(lengths),
        tokens_per_step=tokens / steps,
        micro_batches_per_step=batches / steps,
        padding_share=1 - tokens / area,
    )
