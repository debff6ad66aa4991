"""A version that is an adapter: measured as it is served, by its own digest, and named where it cannot go."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.answers import read_answers
from pipelines.artifacts import Dataset, ModelVersion
from pipelines.config import Config
from pipelines.errors import BadInput
from pipelines.system.manifest import ManifestMismatch
from serving.adapter import files_of
from serving.evaluate import Bench
from serving.golden import read_golden
from serving.release import describe
from serving.served import Served, served
from serving.subjects import Subject
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker
from tests.serving.exporters.released import shape


@pytest.fixture
def adapter(make: Maker) -> Served:
    """The second version of a base."""
    return replace(make, adapters=True)(2)


def _registered(version: Served) -> ModelVersion:
    assert version.adapter is not None
    return ModelVersion(
        name="m", version=version.version, uri=version.adapter.path.as_uri(), digest=version.adapter.digest,
        base_uri=version.model.as_uri(), base_digest=version.digest, serving=version.serving.model_dump_json(),
        golden=str(version.golden), tracking_run="r",
    )  # fmt: skip


def test_it_is_served_as_it_was_registered(adapter: Served, smoke: Config) -> None:
    config = smoke.model_copy(update={"images": adapter.images, "hardware": adapter.hardware})
    assert served(config, _registered(adapter)) == adapter


def test_both_of_its_folders_are_verified(adapter: Served) -> None:
    assert adapter.adapter is not None
    files = files_of(_registered(adapter))
    files.verify()
    (adapter.adapter.path / "more").write_text("x")
    with pytest.raises(ManifestMismatch, match="more"):
        files.verify()
    (adapter.adapter.path / "more").unlink()
    (adapter.model / "double.json").write_text("{}")
    with pytest.raises(ManifestMismatch, match=r"double\.json"):
        files.verify()


def test_what_is_measured_is_the_adapter_on_its_base(
    adapter: Served, make: Maker, smoke: Config, tmp_path: Path
) -> None:
    assert adapter.adapter is not None
    bench = Bench(_config(smoke, make), tmp_path / "run", tmp_path / "cache", _data(tmp_path), _wanted(adapter), DOUBLE)
    report = bench.report()
    base, candidate = report.evaluations
    assert (base.model_digest, candidate.model_digest) == (adapter.digest, adapter.adapter.digest)
    assert {answer.text for answer in read_answers(base.answers).values()} == {"unknown"}
    assert {answer.text for answer in read_answers(candidate.answers).values()} == {"answer of v2"}
    assert {golden.answer for golden in read_golden(report.golden)} == {"answer of v2"}


def test_another_adapter_on_the_same_base_is_measured_anew(
    adapter: Served, make: Maker, smoke: Config, tmp_path: Path
) -> None:
    data, config = _data(tmp_path), _config(smoke, make)
    third = replace(make, adapters=True)(3)
    for version in (adapter, third):
        report = Bench(config, tmp_path / "run", tmp_path / "cache", data, _wanted(version), DOUBLE).report()
    assert {golden.answer for golden in read_golden(report.golden)} == {"answer of v3"}


def _config(smoke: Config, make: Maker) -> Config:
    settings = smoke.evaluate.model_copy(update={"golden_items": 2})
    return smoke.model_copy(update={"serving": make.serving, "evaluate": settings})


def _wanted(version: Served) -> tuple[Subject, Subject]:
    base = Subject("base", version.model, version.digest, "bf16")
    return base, replace(base, name="candidate", adapter=version.adapter)


def _data(folder: Path) -> Dataset:
    (folder / "data").mkdir()
    (folder / "data" / "test.jsonl").write_text("".join(map(_row, QUESTIONS)))
    return Dataset(
        path=folder / "data", digest="d", test_digest="t", rows={}, slices={}, rejects=(), tokens=(), visual_share=0
    )


def _row(question: str) -> str:
    asked = {"role": "user", "content": [{"type": "text", "text": question}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "answer of v2"}]}
    return json.dumps({"id": question, "slice": "s", "messages": [asked, answer]}) + "\n"


def test_a_release_refuses_it_by_name(adapter: Served, smoke: Config) -> None:
    with pytest.raises(BadInput, match=r"version 2 is an adapter on a base(.|\n)*export.artifact merged"):
        describe(smoke, _registered(adapter), shape(), datetime.now(UTC))
