"""The accuracy picture shows what was measured, also when the merged model was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.charts import SCHEME_LABELS, accuracy_chart, label
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.steps import EVALUATE
from tests.pipelines.finished_run import evaluated_run


@pytest.mark.parametrize("subjects", [("base", "merged", "candidate"), ("base", "candidate")])
def test_a_picture_is_drawn(settings: Settings, tmp_path: Path, subjects: tuple[str, ...]) -> None:
    report = evaluated_run(settings, "drawn", "drawn").read(EVALUATE)
    kept = tuple(evaluation for evaluation in report.evaluations if evaluation.subject in subjects)
    path = tmp_path / "accuracy.png"
    accuracy_chart(report.model_copy(update={"evaluations": kept}), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000


@pytest.mark.parametrize("name", ["$a_{$b", "costs $5 or $6", r"\frac"])
def test_a_slice_may_have_any_name(settings: Settings, tmp_path: Path, name: str) -> None:
    report = evaluated_run(settings, "named", "named").read(EVALUATE)
    renamed = [each.model_copy(update={"scores": {name: each.scores["digits"]}}) for each in report.evaluations]
    accuracy_chart(report.model_copy(update={"evaluations": tuple(renamed)}), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


def test_every_scheme_has_a_label_of_its_own() -> None:
    assert set(SCHEME_LABELS) == set(SCHEMES)
    assert len(set(SCHEME_LABELS.values())) == len(SCHEMES)


@pytest.mark.parametrize(
    ("scheme", "shown"), [("bf16", "base bf16"), ("int8_w8a8", "base INT8"), ("gptq_int4", "base GPTQ INT4")]
)
def test_a_bar_says_what_was_served(settings: Settings, scheme: str, shown: str) -> None:
    base = evaluated_run(settings, "shown", "shown").read(EVALUATE).evaluations[0]
    assert label(base.model_copy(update={"scheme": scheme})) == shown
