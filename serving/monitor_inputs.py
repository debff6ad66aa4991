"""What is asked, against what the version in service was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.answers import read_answers
from pipelines.artifacts import Dataset
from pipelines.config_monitoring import Inputs
from pipelines.errors import BadInput
from pipelines.monitoring.drift import Comparison, compare
from pipelines.monitoring.place import Place
from pipelines.monitoring.samples import FEATURES, Sample, having, image_facts, read_sample, refused, schema, values
from pipelines.run import Run
from pipelines.steps import EVALUATE, PREPARE
from pipelines.system.durable import write_bytes
from serving.served import Served

ROWS = 2000
"""Of the training set that are looked at, spread over it."""


def asked_lately(place: Place, inputs: Inputs, moment: datetime) -> list[Sample]:
    """The samples of the window that is compared."""
    rows = place.inputs.since(moment - timedelta(hours=inputs.window_hours))
    return [sample for row in rows if (sample := read_sample(row)) is not None]


def rates(samples: Sequence[Sample]) -> dict[str, float]:
    """Shares of the answers that are as their schema says, and that are refusals."""
    found = {name: values(samples, name) for name in ("schema_valid", "refused")}
    return {name: sum(each) / len(each) for name, each in found.items() if each}


def compare_inputs(place: Place, now: Served, inputs: Inputs, current: Sequence[Sample]) -> tuple[Comparison, ...]:
    """Every feature that both sides have.

    Raises:
        BadInput: The run that the version came from is gone, and no reference of it was kept.
    """
    if not current:
        return ()
    known = reference(place, now, inputs)
    sides = {name: (values(known, name), values(current, name)) for name in FEATURES}
    return tuple(
        compare(
            name,
            trained,
            asked,
            threshold=inputs.psi,
            min_samples=inputs.min_samples,
            asked=(having(known, name, trained), having(current, name, asked)),
        )
        for name, (trained, asked) in sides.items()
        if trained and asked
    )


def reference(place: Place, now: Served, inputs: Inputs) -> list[Sample]:
    """The training set's samples, kept once they were taken: images and answers of training rows; tokens as the engine
    counted them for the held-out rows of the same data set.

    Raises:
        BadInput: The run that the version came from is gone.
    """
    path = place.folder / "references" / f"{now.own_digest[:16]}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = [sample.model_dump() for sample in _take(_run_of(now), inputs)]
        table = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(taken, schema=schema()), table, compression="zstd")
        write_bytes(path, table.getvalue().to_pybytes())
    return [sample for row in pq.read_table(path).to_pylist() if (sample := read_sample(row)) is not None]


def _run_of(now: Served) -> Run:
    """The run whose evaluation recorded the version's golden answers."""
    for folder in now.golden.parents:
        if (folder / "config.json").is_file():
            return Run.open(folder)
    raise BadInput(f"{now.golden} lies in no run: version {now.version} has no training set to compare inputs with")


def _take(run: Run, inputs: Inputs) -> Iterator[Sample]:
    yield from _trained(run.read(PREPARE), inputs)
    measured = run.read(EVALUATE).subject("candidate")
    for answer in () if measured is None else read_answers(measured.answers).values():
        valid = answer.marks.get("schema_valid")
        yield Sample(time=0, prompt_tokens=answer.prompt_tokens, answer_tokens=answer.answer_tokens, schema_valid=valid)


def _trained(dataset: Dataset, inputs: Inputs) -> Iterator[Sample]:
    lines = (dataset.path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for line in _spread(lines, ROWS):
        messages: list[dict[str, Any]] = json.loads(line)["messages"]
        found = [image_facts(image.read_bytes()) for image in _images(messages, dataset.path)]
        answer = "".join(part.get("text", "") for part in messages[-1]["content"])
        images = tuple(fact for fact in found if fact is not None)
        yield Sample(time=0, images=images, refused=refused(answer, inputs.refusals))


def _images(messages: Sequence[dict[str, Any]], folder: Path) -> Iterator[Path]:
    for message in messages:
        yield from (folder / part["image"] for part in message["content"] if part["type"] == "image")


def _spread(lines: Sequence[str], count: int) -> list[str]:
    count = min(count, len(lines))
    return [lines[i * len(lines) // count] for i in range(count)]
