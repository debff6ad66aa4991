"""The second step: read, check, split and store the chat data set, so that nothing surprises the GPU later."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.artifacts import BaseSnapshot, Dataset, Reject
from pipelines.config import Config
from pipelines.errors import DataRejected
from pipelines.system.durable import commit, write_text
from pipelines.system.manifest import text_digest, write_manifest
from training.builtin.digits import write_digits
from training.chat.encoding import Encoder, Unencodable, load_processor
from training.chat.pictures import Unusable
from training.chat.rows import Row, read_row
from training.chat.split import assign_splits
from training.plots import plot_tokens

BUCKET = 16
"""Tokens per bucket of the histogram."""

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Counted:
    """A usable row and its tokens."""

    row: Row
    tokens: int
    visual: int


def prepare(config: Config, folder: Path, base: BaseSnapshot) -> Dataset:
    """Make a checked data set out of the config's source.

    Args:
        config: Sections `data` and `images` are used.
        folder: The step's folder. Gets `data/` (rows, images, manifest), `rejects.jsonl` and `tokens.png`.
        base: Its processor counts the tokens.

    Raises:
        DataRejected: Too many rows are unusable, or a split is empty.
    """
    final, partial = folder / "data", folder / ".data.partial"
    for leftover in (final, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    encoder = Encoder(load_processor(base.path, config.images.min_pixels, config.images.max_pixels))
    with _source(config, folder) as source:
        rows, rejects = check_rows(source, partial / "images", encoder, config.data.max_tokens)
    rows, leaks = _seal_test(_split(rows, config))
    rejects = sorted([*rejects, *leaks], key=lambda reject: reject.line)
    write_text(folder / "rejects.jsonl", "".join(reject.model_dump_json() + "\n" for reject in rejects))
    _require_enough(rows, rejects, config.data.max_reject_share)
    _write(partial, [counted.row for counted in rows])
    digest = write_manifest(partial)
    commit(partial, final)
    plot_tokens([counted.tokens for counted in rows], folder / "tokens.png")
    return _artifact(final, digest, rows, rejects)


def check_rows(source: Path, images: Path, encoder: Encoder, max_tokens: int) -> tuple[list[Counted], list[Reject]]:
    """Sort the lines of `source/data.jsonl` into usable rows and rejects.

    Args:
        source: Folder with `data.jsonl` and the images that it names.
        images: Folder that usable images are stored in.
        encoder: Counts the tokens.
        max_tokens: Longer rows are rejected.
    """
    rows: list[Counted] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    for number, line in _lines(source / "data.jsonl"):
        try:
            counted = _count(read_row(number, line, source, images, encoder.special), encoder, max_tokens)
            if counted.row.id in seen:
                raise Unusable("duplicate id", counted.row.id)
        except Unusable as error:
            rejects.append(Reject(line=number, reason=error.reason, detail=error.detail))
            continue
        seen.add(counted.row.id)
        rows.append(counted)
    return rows, rejects


@contextmanager
def _source(config: Config, folder: Path) -> Iterator[Path]:
    """The folder that holds `data.jsonl`; a built-in one exists while the block runs."""
    scheme, _, place = config.data.source.partition("://")
    if scheme == "file":
        if not (Path(place) / "data.jsonl").is_file():
            raise DataRejected(f"{place}: no data.jsonl in it; data.source names a folder that has one")
        yield Path(place)
        return
    if place != "digits":
        raise DataRejected(f"{config.data.source}: no such built-in data set; there is builtin://digits")
    built = folder / ".source.partial"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    write_digits(built, replay=config.data.replay, seed=config.data.seed)
    yield built
    shutil.rmtree(built)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with file.open("rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _count(row: Row, encoder: Encoder, max_tokens: int) -> Counted:
    try:
        tokens, visual = encoder.count(row.chat(), [picture.size for picture in row.pictures])
    except Unencodable as error:
        raise Unusable("not expressible", f"{row.id}: {error}") from None
    except ValueError as error:  # the image processor's own limit on the ratio of width to height
        raise Unusable("unsupported image shape", f"{row.id}: {error}") from None
    if tokens > max_tokens:
        raise Unusable("too long", f"{row.id}: {tokens} tokens, data.max_tokens is {max_tokens}")
    return Counted(row, tokens, visual)


def _split(rows: list[Counted], config: Config) -> list[Counted]:
    free = [counted.row for counted in rows if counted.row.split is None]
    splits = assign_splits(
        [(row.slice, row.answer) for row in free],
        eval_share=config.data.eval_share,
        test_share=config.data.test_share,
        seed=config.data.seed,
    )
    named = {row.number: split for row, split in zip(free, splits, strict=True)}
    return [replace(c, row=replace(c.row, split=c.row.split or named[c.row.number])) for c in rows]


def _seal_test(rows: list[Counted]) -> tuple[list[Counted], list[Reject]]:
    """Rows of the other splits that ask a question of the test split are rejected: the test stays as it is."""
    sealed = {counted.row.question for counted in rows if counted.row.split == "test"}
    clean, leaks = [], []
    for counted in rows:
        row = counted.row
        if row.split != "test" and row.question in sealed:
            detail = f"{row.id}: the test split asks the same of the same images"
            leaks.append(Reject(line=row.number, reason="test leakage", detail=detail))
        else:
            clean.append(counted)
    return clean, leaks


def _require_enough(rows: list[Counted], rejects: list[Reject], max_share: float) -> None:
    total = len(rows) + len(rejects)
    if len(rejects) > max_share * total:
        raise DataRejected(
            f"{len(rejects)} of {total} rows are unusable, data.max_reject_share allows {max_share:.0%}; "
            f"all are in rejects.jsonl\n{_summary(rejects)}"
        )
    missing = set(SPLITS) - {counted.row.split for counted in rows}
    if missing:
        raise DataRejected(f"no rows in split {', '.join(sorted(missing))} of {total}; add rows or raise its share")


def _summary(rejects: Iterable[Reject]) -> str:
    """Counts by reason, each with its first example."""
    first: dict[str, Reject] = {}
    counts = Counter(reject.reason for reject in rejects if first.setdefault(reject.reason, reject))
    return "\n".join(
        f"  {count} x {reason}, first in line {first[reason].line}: {first[reason].detail}"
        for reason, count in counts.most_common()
    )


def _write(folder: Path, rows: list[Row]) -> None:
    for split in SPLITS:
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(row.json() + "\n" for row in rows if row.split == split)
    used = {picture.name for row in rows for picture in row.pictures}
    for image in (folder / "images").iterdir():
        if image.name not in used:
            image.unlink()


def _artifact(path: Path, digest: str, rows: list[Counted], rejects: list[Reject]) -> Dataset:
    buckets = Counter(counted.tokens // BUCKET for counted in rows)
    per_slice = Counter((str(counted.row.split), counted.row.slice) for counted in rows)
    slices = {split: {s: n for (of, s), n in sorted(per_slice.items()) if of == split} for split in SPLITS}
    tests = sorted(text_digest(r.id, r.slice, r.question, r.answer) for r in (c.row for c in rows) if r.split == "test")
    return Dataset(
        path=path,
        digest=digest,
        test_digest=text_digest(*tests),
        rows={split: sum(slices[split].values()) for split in SPLITS},
        slices=slices,
        rejects=tuple(rejects),
        tokens=tuple(buckets[i] for i in range(max(buckets) + 1)),
        visual_share=sum(c.visual for c in rows) / sum(c.tokens for c in rows),
    )
