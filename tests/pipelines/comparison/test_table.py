"""A comparison as a person and as a spreadsheet read it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipelines.answers import write_answers
from pipelines.comparison import published
from pipelines.comparison.chart import draw_comparison
from pipelines.comparison.found import Comparison, Row
from pipelines.comparison.planned import Planned
from pipelines.comparison.published import publish_comparison
from pipelines.comparison.rows import Contestant, Measured
from pipelines.comparison.table import csv_of, markdown_of, show_tables
from pipelines.config import Config
from pipelines.config_load import Load, Slo
from pipelines.evaluation import Answer
from pipelines.load_report import LoadPoint, LoadReport, LoadRun, Traffic
from pipelines.run import Run
from pipelines.scores import scores
from pipelines.settings import Settings
from pipelines.tracking import client

LOAD = Load(concurrencies=(1, 8), repeats=2, slo=Slo(e2e_ms=500))


def run_of(concurrency: int, slower: float) -> LoadRun:
    """One that takes 100 ms a request, however many are in flight."""
    names = ("ttft", "tpot", "itl", "e2e")
    return LoadRun(
        completed=300, failed=0, seconds=30, **{f"{n}_{p}_ms": 100.0 * slower for n in names for p in ("p50", "p99")},
        requests_per_minute=600 * concurrency / slower, output_tokens_per_second=640, good_share=1,
        goodput_per_minute=590, kv_usage_peak=0.4, preemptions=1, lost=0,
    )  # fmt: skip


def measured(folder: Path, name: Contestant, wrong: int, slower: float) -> Row:
    """A scheme with `wrong` of a hundred answers wrong."""
    answers = [
        Answer(
            item=f"q{i}", slice=f"s{i % 2}", expected="y", text="n" if i < wrong else "y", finish_reason="stop",
            seconds=0.1,
        )
        for i in range(100)
    ]  # fmt: skip
    write_answers(folder / f"{name}.parquet", answers)
    points = tuple(
        LoadPoint(traffic=Traffic(concurrency=c), runs=(run_of(c, slower), run_of(c, slower * 1.1))) for c in (1, 8)
    )
    found = Measured(
        key="k", engine="vLLM 0.32.0", answers=folder / f"{name}.parquet", scores=scores(answers), start_seconds=30,
        kv_tokens=83_424, load=LoadReport(engine="vLLM 0.32.0", load=LOAD, points=points, peak_gib=40.5),
    )  # fmt: skip
    return Row(name, planned(), found, None, 30.1, expected=True)


def planned() -> Planned:
    """A plan."""
    return Planned(
        card="L40S, 48 GB", verdict="tight", need_gib=36.2, limit_gib=37.8, weights_gib=30.11, peak_gib=38.0,
        kv_tokens=84_000, kv_token_bytes=98_304, fits_here=True, objection=None,
    )  # fmt: skip


@pytest.fixture
def found(smoke: Config, tmp_path: Path) -> Comparison:
    """Two schemes with figures, one without."""
    config = smoke.model_copy(update={"load": LOAD})
    missing = Row("gptq_int4", planned(), None, "`make quantize-env` once", None, expected=False)
    rows = (measured(tmp_path, "bf16", 10, 2.0), measured(tmp_path, "int8_w8a8", 13, 1.0), missing)
    return Comparison("smoke", config, rows)


def test_the_document_has_every_figure_and_says_what_is_missing(found: Comparison) -> None:
    text = markdown_of(found)
    assert "|  | bf16 | int8_w8a8 | gptq_int4 |" in text
    assert "| ms an image, one at a time | 210 ± 127 | 105 ± 64 | - |" in text
    assert "| ms an image, 8 at once | 26.2 ± 15.9 | 13.1 ± 7.9 | - |" in text
    assert "| right answers | 90.0% (82.6% to 94.5%) | 87.0% (79.0% to 92.2%) | - |" in text
    assert "| points against bf16 | - | -3.0 (-" in text
    assert "| on L40S, 48 GB | tight (36.2 of 37.8 GiB) |" in text
    assert "| KV, GiB | 7.64 | 7.64 | - |" in text
    assert "## Load, concurrency-8" in text
    assert "| E2E p99 ms | 210 ± 127 | 105 ± 64 | - |" in text
    assert "| within the SLO/min | 590 ± 0 | 590 ± 0 | - |" in text
    assert "- gptq_int4: not measured: `make quantize-env` once" in text
    assert "no attempt at the gate" in text


def with_a_lost_point(found: Comparison) -> Comparison:
    """The same, had the second scheme lost requests with eight in flight."""
    bf16, int8, *others = found.rows
    assert int8.measured is not None
    alone, many = int8.measured.load.points
    lost = tuple(
        run.model_copy(update={"objections": ("299 of 300 requests completed, 1 failed",)}) for run in many.runs
    )
    load = int8.measured.load.model_copy(update={"points": (alone, many.model_copy(update={"runs": lost}))})
    return Comparison(
        found.run,
        found.config,
        (bf16, replace(int8, measured=int8.measured.model_copy(update={"load": load})), *others),
    )


def test_a_point_that_lost_requests_has_no_figures_and_everything_else_has(found: Comparison, tmp_path: Path) -> None:
    lost = with_a_lost_point(found)
    text = markdown_of(lost)
    assert "| ms an image, one at a time | 210 ± 127 | 105 ± 64 | - |" in text
    assert "| ms an image, 8 at once | 26.2 ± 15.9 | - | - |" in text
    assert "| requests/min, 8 at once | 2,291 ± 1,386 | - | - |" in text
    assert "| right answers | 90.0% (82.6% to 94.5%) | 87.0% (79.0% to 92.2%) | - |" in text
    reason = "concurrency-8: 299 of 300 requests completed, 1 failed"
    assert f"- int8_w8a8: no figures at {reason}\n" in text
    _, int8, _ = csv.DictReader(io.StringIO(csv_of(lost)))
    assert (int8["missing"], int8["concurrency-8.e2e_p50_ms"]) == (reason, "")
    assert float(int8["concurrency-1.e2e_p50_ms"]) == pytest.approx(105)
    draw_comparison(lost, tmp_path / "comparison.png")


def test_a_comparison_with_a_lost_point_is_not_complete(found: Comparison) -> None:
    whole = Comparison(found.run, found.config, found.rows[:2])
    assert whole.complete
    assert not with_a_lost_point(whole).complete


def with_slices(found: Comparison, *names: str) -> Comparison:
    """The same scores under other names."""
    rows = []
    for row in found.measured:
        assert row.measured is not None
        scores = dict.fromkeys(names, row.measured.scores["s0"])
        rows.append(replace(row, measured=row.measured.model_copy(update={"scores": scores})))
    return Comparison(found.run, found.config, tuple(rows))


def test_a_slice_of_any_name_stays_in_its_cell(found: Comparison) -> None:
    named = with_slices(found, "a|b", "size [cm] :ok:", "x[/y]")
    [line] = [line for line in markdown_of(named).splitlines() if "a\\|b" in line]
    assert line.replace("\\|", "").count("|") == 4
    shown = io.StringIO()
    show_tables(named, Console(file=shown, width=160))
    for name in ("a|b", "size [cm] :ok:", "x[/y]"):
        assert name in shown.getvalue()


def test_brackets_in_a_reason_are_shown(found: Comparison) -> None:
    reason = "the engine ended with 1 [core.py:55] [/dev/shm]"
    broken = Row("fp16", planned(), None, reason, None, expected=False)
    shown = io.StringIO()
    show_tables(Comparison(found.run, found.config, (*found.rows, broken)), Console(file=shown, width=160))
    assert f"fp16: not measured: {reason}" in shown.getvalue()


def test_the_spreadsheet_has_numbers(found: Comparison) -> None:
    bf16, int8, gptq = csv.DictReader(io.StringIO(csv_of(found)))
    assert float(int8["difference"]) == pytest.approx(-0.03)
    assert float(int8["lower"]) < -0.03 < float(int8["upper"])
    assert bf16["difference"] == ""
    assert float(int8["concurrency-8.requests_per_minute"]) == pytest.approx((4800 + 4800 / 1.1) / 2)
    assert float(int8["concurrency-1.goodput_per_minute"]) == 590
    assert float(int8["right.s0"]) == pytest.approx(0.86)
    assert (gptq["missing"], gptq["peak_gib"]) == ("`make quantize-env` once", "")


def test_the_screen_shows_the_same_tables(found: Comparison) -> None:
    text = io.StringIO()
    show_tables(found, Console(file=text, width=120))
    assert "points against bf16" in text.getvalue()
    assert "gptq_int4: not measured: `make quantize-env` once" in text.getvalue()


def test_the_picture_is_one(found: Comparison, tmp_path: Path) -> None:
    draw_comparison(found, tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10


def test_a_scheme_that_does_not_fit_is_an_answer_and_one_without_environment_is_none(found: Comparison) -> None:
    assert not found.complete
    too_large = Row("fp16", planned(), None, "does not fit", None, expected=True)
    assert Comparison(found.run, found.config, (*found.rows[:2], too_large)).complete


def test_mlflow_gets_figures_and_files_of_the_run(
    found: Comparison, tracked: Settings, smoke: Config, tmp_path: Path
) -> None:
    run = Run.create(tracked.runs / "compared", smoke)
    document = tmp_path / "comparison.md"
    document.write_text(markdown_of(found))
    publish_comparison(run, found, [document], tracked)
    mlflow = client(tracked)
    [logged] = mlflow.search_runs(
        [mlflow.get_experiment_by_name("vlmops").experiment_id], f"tags.`vlmops.run` = '{run.root}'"
    )  # fmt: skip
    assert logged.data.metrics["compare.int8_w8a8.concurrency-1.e2e_p50_ms"] == pytest.approx(105)
    assert [file.path for file in mlflow.list_artifacts(logged.info.run_id, "compare")] == ["compare/comparison.md"]


def test_mlflow_gets_figures_of_slices_with_any_name_and_more_than_it_takes_at_once(
    found: Comparison, tracked: Settings, smoke: Config
) -> None:
    named = with_slices(found, "größe (cm)", "价格", *(f"slice-{number}" for number in range(1100)))
    run = Run.create(tracked.runs / "named", smoke)
    publish_comparison(run, named, [], tracked)
    mlflow = client(tracked)
    [logged] = mlflow.search_runs(
        [mlflow.get_experiment_by_name("vlmops").experiment_id], f"tags.`vlmops.run` = '{run.root}'"
    )  # fmt: skip
    names = {f"compare.bf16.right.{name}" for name in ("größe _cm_", "价格", "slice-0", "slice-1099")}
    assert names <= logged.data.metrics.keys()


def test_a_server_that_goes_away_under_way_costs_a_warning(
    found: Comparison,
    tracked: Settings,
    smoke: Config,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(published, "client", lambda _: MlflowClient("http://127.0.0.1:9"))
    publish_comparison(Run.create(tracked.runs / "cut", smoke), found, [], tracked)
    assert "the comparison is not in MLflow" in caplog.text


def test_a_server_that_is_away_costs_a_warning(
    found: Comparison, dead: Settings, smoke: Config, caplog: pytest.LogCaptureFixture
) -> None:
    publish_comparison(Run.create(dead.runs / "compared", smoke), found, [], dead)
    assert "the comparison is not in MLflow" in caplog.text
