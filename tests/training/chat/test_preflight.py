"""The report: its figures are those of the rows, and of the batches that training will make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.artifacts import Reject
from pipelines.config import Images, Train
from training.chat.checking import Counted
from training.chat.messages import Message, Split
from training.chat.pictures import Picture
from training.chat.preflight import BUCKETS, EXAMPLES, Report, report_on
from training.chat.rejects import Origin
from training.chat.rows import Row
from training.plots import plot_tokens

TRAIN = Train(steps=10, batch_size=4, tokens_per_batch=64)
LIMITS = Images(min_pixels=4096, max_pixels=65536)


def _counted(
    line: int, tokens: int, visual: int, sizes: Sequence[tuple[int, int]] = (), split: Split = "train"
) -> Counted:
    messages = (Message(role="user", content=f"{line}?"), Message(role="assistant", content="That."))
    pictures = tuple(Picture(f"{i}.png", size, pixels=f"{size}") for i, size in enumerate(sizes))
    return Counted(
        Row(Origin("data.jsonl", line), str(line), "all", split, messages, pictures, "messages"), tokens, visual
    )


def _report(rows: Sequence[Counted], rejects: Sequence[Reject] = ()) -> Report:
    return report_on("file:///x", rows, rejects, LIMITS, TRAIN)


def test_percentiles_are_lengths_that_rows_have() -> None:
    tokens = _report([_counted(i, i, 0) for i in range(1, 201)]).tokens
    assert (tokens.p50, tokens.p90, tokens.p99, tokens.max) == (100, 180, 198, 200)
    single = _report([_counted(1, 7, 4)]).tokens
    assert (single.p50, single.p99, single.max, single.visual_share) == (7, 7, 7, 4 / 7)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 5000)), min_size=1, max_size=60))
def test_the_histogram_holds_every_row_and_every_token(pairs: list[tuple[int, int]]) -> None:
    rows = [_counted(i, text + visual, visual) for i, (text, visual) in enumerate(pairs)]
    buckets = _report(rows).tokens.buckets
    assert len(buckets) <= BUCKETS
    assert [bucket.first for bucket in buckets[1:]] == [bucket.last + 1 for bucket in buckets[:-1]]
    assert sum(bucket.rows for bucket in buckets) == len(rows)
    assert sum(bucket.text for bucket in buckets) == sum(text for text, _ in pairs)
    assert sum(bucket.visual for bucket in buckets) == sum(visual for _, visual in pairs)
    assert all(
        bucket.first * bucket.rows <= bucket.text + bucket.visual <= bucket.last * bucket.rows for bucket in buckets
    )


def test_images_are_counted_measured_and_held_against_the_limits() -> None:
    rows = [_counted(1, 9, 4, [(64, 64), (1000, 500)]), _counted(2, 9, 4, [(32, 32)]), _counted(3, 5, 0)]
    images = _report(rows).images
    assert (images.total, images.distinct, images.per_row) == (3, 3, {0: 1, 1: 1, 2: 1})
    assert (images.smallest, images.median, images.largest) == ((32, 32), (64, 64), (1000, 500))
    assert (images.shrunk, images.enlarged) == (1, 1)


def test_rows_without_images_have_no_sizes() -> None:
    images = _report([_counted(1, 5, 0)]).images
    assert (images.total, images.smallest, images.largest) == (0, None, None)


def test_an_epoch_is_cut_as_training_cuts_it() -> None:
    rows = [_counted(i, 30, 0) for i in range(10)] + [_counted(20, 30, 0, split="test")]
    epoch = _report(rows).epoch
    assert (epoch.steps, epoch.passes) == (3, 4.0)  # ten rows, four a step; forty rows in ten steps
    assert epoch.micro_batches_per_step == 2  # two rows of 30 tokens fit in 64
    assert epoch.padding_share == 0
    uneven = _report([_counted(i, tokens, 0) for i, tokens in enumerate((30, 20, 20, 20))]).epoch
    assert uneven.padding_share == pytest.approx(0.1)  # 30 and 20, then 20 and 20


def test_reasons_come_with_their_first_examples_the_most_frequent_first() -> None:
    rejects = [Reject(line=i, reason="missing image" if i else "too long", detail=str(i)) for i in range(6)]
    reasons = _report([_counted(1, 5, 0)], rejects).rejects
    assert [(reason.reason, reason.count) for reason in reasons] == [("missing image", 5), ("too long", 1)]
    assert [reject.line for reject in reasons[0].examples] == [1, 2, 3]
    assert len(reasons[0].examples) == EXAMPLES


def test_the_report_survives_its_file() -> None:
    report = _report([_counted(1, 9, 4, [(64, 64)])])
    assert Report.model_validate_json(report.model_dump_json()) == report


def _shows(picture: Path, colour: tuple[int, int, int]) -> bool:
    with Image.open(picture) as image:
        return colour in {pixel for _, pixel in image.convert("RGB").getcolors(10**6) or ()}


def test_the_picture_shows_text_and_visual_tokens(tmp_path: Path) -> None:
    plot_tokens(_report([_counted(1, 90, 60), _counted(2, 20, 0)]).tokens.buckets, 128, tmp_path / "both.png")
    plot_tokens(_report([_counted(1, 90, 0)]).tokens.buckets, 4096, tmp_path / "text.png")
    text, visual = (31, 119, 180), (255, 127, 14)
    assert _shows(tmp_path / "both.png", text)
    assert _shows(tmp_path / "both.png", visual)
    assert _shows(tmp_path / "text.png", text)
