"""The second step: read, check, split and store the chat data set, so that nothing surprises the GPU later."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.artifacts import BaseSnapshot, Dataset, Reject
from pipelines.config import Config
from pipelines.config_gate import Requirement
from pipelines.errors import BadInput, DataRejected
from pipelines.system.durable import commit, write_text
from pipelines.system.manifest import text_digest, write_manifest
from training.builtin.digits import write_digits
from training.chat.checking import Counted, check_rows
from training.chat.encoding import Encoder, load_processor
from training.chat.overlap import find_duplicates, find_leaks
from training.chat.preflight import Report, report_on, summarize
from training.chat.rejects import Origin
from training.chat.rows import Row
from training.chat.split import assign_splits
from training.formats.source import Source, open_source
from training.plots import plot_tokens

log = logging.getLogger(__name__)

BUCKET = 16
"""Tokens per bucket of the artifact's histogram."""

SPLITS = ("train", "eval", "test")


def prepare(config: Config, folder: Path, base: BaseSnapshot) -> Dataset:
    """Make a checked data set out of the config's source.

    Args:
        config: Sections `data` and `images`, of `train` what makes its batches, and how many images are served.
        folder: The step's folder. Gets `data/` (rows, images, manifest), `rejects.jsonl`, `report.json`, `tokens.png`.
        base: Its processor counts the tokens.

    Raises:
        BadInput: The gate would refuse the test split: a slice has no requirement, or a requirement no rows.
        DataRejected: Too many rows are unusable, a split is empty, or a test row shows more images than will be served.
    """
    final, partial = folder / "data", folder / ".data.partial"
    for leftover in (final, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    encoder = Encoder(load_processor(base.path, config.images.min_pixels, config.images.max_pixels))
    with _source(config, folder) as source:
        rows, rejects = check_rows(source, partial / "images", encoder, config.data.max_tokens)
    rows, rejects = _separate(rows, rejects, config)
    write_text(folder / "rejects.jsonl", "".join(reject.model_dump_json() + "\n" for reject in rejects))
    _require_enough(rows, rejects, config.data.max_reject_share)
    _require_servable(rows, config.serving.images_per_request)
    _require_judged(rows, config.gate.requirements)
    report = report_on(config.data.source, rows, rejects, config.images, config.train)
    _publish(report, config.data.max_tokens, folder)
    _write(partial, [counted.row for counted in rows])
    digest = write_manifest(partial)
    commit(partial, final)
    return _artifact(final, digest, rows, rejects, report)


@contextmanager
def _source(config: Config, folder: Path) -> Iterator[Source]:
    """The rows of the config's source; a built-in one exists while the block runs."""
    scheme, _, place = config.data.source.partition("://")
    if scheme == "file":
        yield open_source(Path(place), config.data.format)
        return
    if place != "digits":
        raise DataRejected(f"{config.data.source}: no such built-in data set; there is builtin://digits")
    built = folder / ".source.partial"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    write_digits(built, replay=config.data.replay, seed=config.data.seed)
    yield open_source(built)
    shutil.rmtree(built)


def _separate(rows: Sequence[Counted], rejects: Sequence[Reject], config: Config) -> tuple[list[Counted], list[Reject]]:
    """Give every row a split, and set aside what a split must not hold: duplicates, and questions that are held out."""
    duplicates = find_duplicates([counted.row for counted in rows])
    split = _split(_without(rows, duplicates), config)
    leaks = find_leaks([counted.row for counted in split])
    found = [*rejects, *duplicates.values(), *leaks.values()]
    return _without(split, leaks), sorted(found, key=lambda reject: (reject.file, reject.line))


def _without(rows: Sequence[Counted], rejects: dict[Origin, Reject]) -> list[Counted]:
    return [counted for counted in rows if counted.row.origin not in rejects]


def _split(rows: Sequence[Counted], config: Config) -> list[Counted]:
    free = [counted.row for counted in rows if counted.row.split is None]
    splits = assign_splits(
        [(row.slice, row.answer) for row in free],
        eval_share=config.data.eval_share,
        test_share=config.data.test_share,
        seed=config.data.seed,
    )
    given = {row.origin: split for row, split in zip(free, splits, strict=True)}
    return [c.into(given[c.row.origin]) if c.row.split is None else c for c in rows]


def _require_enough(rows: Sequence[Counted], rejects: Sequence[Reject], max_share: float) -> None:
    total = len(rows) + len(rejects)
    if len(rejects) > max_share * total:
        reasons = "\n".join(
            f"  {found.count} x {found.reason}, first in {first.file} line {first.line}: {first.detail}"
            for found in summarize(rejects)
            for first in found.examples[:1]
        )
        raise DataRejected(
            f"{len(rejects)} of {total} rows are unusable, data.max_reject_share allows {max_share:.0%}; "
            f"all are in rejects.jsonl\n{reasons}"
        )
    missing = set(SPLITS) - {counted.row.split for counted in rows}
    if missing:
        raise DataRejected(f"no rows in split {', '.join(sorted(missing))} of {total}; add rows or raise its share")


def _require_servable(rows: Sequence[Counted], images_per_request: int) -> None:
    """The engine would refuse these questions, after hours of training."""
    asked = [c.row for c in rows if c.row.split == "test" and len(c.row.pictures) > images_per_request]
    if asked:
        most = max(len(row.pictures) for row in asked)
        raise DataRejected(
            f"{len(asked)} test rows show more images than serving.images_per_request {images_per_request} allows, "
            f"such as {asked[0].id}; set it to {most}, or take those rows out"
        )


def _require_judged(rows: Sequence[Counted], requirements: Sequence[Requirement]) -> None:
    """The gate would object to these slices, after training, export and evaluation."""
    tested, required = {c.row.slice for c in rows if c.row.split == "test"}, {each.slice for each in requirements}
    problems = []
    if names := sorted(tested - required):
        example = f"{{slice: {names[0]}, margin: 0.02}}"
        problems.append(f"no requirement for {', '.join(names)}: add one for each, such as {example}")
    if names := sorted(required - tested):
        problems.append(f"no test row of {', '.join(names)}: add some (data.test_share), or take the requirement out")
    if problems:
        raise BadInput(f"gate.requirements does not fit the test split: {'; '.join(problems)}")


def _publish(report: Report, max_tokens: int, folder: Path) -> None:
    """Show the report: as a file, as a picture and in the log."""
    write_text(folder / "report.json", report.model_dump_json(indent=1))
    plot_tokens(report.tokens.buckets, max_tokens, folder / "tokens.png")
    log.info("%s: %s", report.source, ", ".join(f"{n:,} rows as {style}" for style, n in report.styles.items()))
    for found in report.rejects:
        log.warning("%d rows set aside: %s, such as %s", found.count, found.reason, found.examples[0].detail)
    if report.shared_image_rows:
        log.warning("%d training rows show an image that held-out rows ask about too", report.shared_image_rows)
    tokens, epoch = report.tokens, report.epoch
    log.info(
        "tokens per row: half up to %d, 99 %% up to %d, longest %d, %.0f %% visual; %d steps an epoch, %.1f epochs",
        *(tokens.p50, tokens.p99, tokens.max, 100 * tokens.visual_share, epoch.steps, epoch.passes),
    )


def _write(folder: Path, rows: Sequence[Row]) -> None:
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(row.json() + "\n" for row in rows if row.split == split)
    used = {picture.name for row in rows for picture in row.pictures}
    for image in (folder / "images").iterdir():
        if image.name not in used:
            image.unlink()


def _artifact(path: Path, digest: str, rows: Sequence[Counted], rejects: Sequence[Reject], report: Report) -> Dataset:
    buckets = Counter(counted.tokens // BUCKET for counted in rows)
    tests = sorted(text_digest(r.id, r.slice, r.question, r.answer) for r in (c.row for c in rows) if r.split == "test")
    return Dataset(
        path=path,
        digest=digest,
        test_digest=text_digest(*tests),
        rows={split: sum(report.rows[split].values()) for split in SPLITS},
        slices=report.rows,
        rejects=tuple(rejects),
        tokens=tuple(buckets[i] for i in range(max(buckets) + 1)),
        visual_share=report.tokens.visual_share,
        preflight=report.key_figures(),
    )
