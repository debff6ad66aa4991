"""MLflow shows what the run's directory says, also after it was away, and never twice."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import tracking
from pipelines.errors import Unreachable
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, FINETUNE
from pipelines.tracking import (
    answering,
    client,
    file_address,
    flatten,
    metric_name,
    note_failure,
    publish,
    publish_if_reachable,
)
from tests.pipelines.finished_run import decide, evaluated_run


def test_a_run_is_published_whole(tracked: Settings) -> None:
    run = evaluated_run(tracked, "whole", "t-whole")
    (run.folder(FINETUNE) / "loss.png").write_bytes(b"png")
    decide(run, "pass")
    run_id = publish(run, tracked)
    mlflow = client(tracked)
    data = mlflow.get_run(run_id).data
    assert data.params["lora.rank"] == "8"
    assert data.metrics["accuracy.candidate.digits"] == pytest.approx(0.95)
    assert data.metrics["accuracy.candidate.digits.low"] < 0.95 < data.metrics["accuracy.candidate.digits.high"]
    assert data.metrics["share.candidate.x-ray/sensitivity/fracture _open_"] == pytest.approx(0.9)
    assert data.metrics["finetune.seconds"] == 12.5
    assert data.metrics["finetune.peak_gib"] == 1.2
    assert [m.step for m in mlflow.get_metric_history(run_id, "loss")] == list(range(1, 11))
    files = {file.path for file in mlflow.list_artifacts(run_id)}
    assert {"config.json", "finetune", "gate", "evaluate"} <= files
    assert {f.path for f in mlflow.list_artifacts(run_id, "gate")} == {"gate/output.json"}
    assert "finetune/loss.png" in {f.path for f in mlflow.list_artifacts(run_id, "finetune")}
    assert "evaluate/candidate/answers.parquet" in {f.path for f in mlflow.list_artifacts(run_id, "evaluate/candidate")}
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_who_asked_and_why_is_on_the_page_and_links_lead_where_people_see_it(tracked: Settings) -> None:
    run = evaluated_run(tracked, "asked", "t-asked")
    run.request.write_text(json.dumps({"trigger": "data", "reason": "120 new files"}))
    run_id = publish(run, tracked)
    tags = client(tracked).get_run(run_id).data.tags
    assert (tags["vlmops.trigger"], tags["vlmops.reason"]) == ("data", "120 new files")
    elsewhere = tracked.model_copy(update={"mlflow_page": "http://pages.example:81"})
    assert file_address(run_id, "a.html", tracked).startswith(f"{tracked.mlflow_uri}/#/experiments/")
    assert file_address(run_id, "a.html", elsewhere).startswith("http://pages.example:81/#/experiments/")


def test_publishing_again_adds_nothing(tracked: Settings) -> None:
    run = evaluated_run(tracked, "again", "t-again")
    run_id = publish(run, tracked)
    (run.root / "mlflow.json").unlink()  # died before noting it
    assert publish(run, tracked) == run_id
    assert len(client(tracked).get_metric_history(run_id, "loss")) == 10


def test_what_was_missed_is_published_later(dead: Settings, mlflow_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    run = evaluated_run(dead, "late", "t-late")
    with caplog.at_level(logging.WARNING):
        publish_if_reachable(run, dead)
    assert "http://127.0.0.1:9" in caplog.text
    run_id = publish(run, dead.model_copy(update={"mlflow_uri": mlflow_uri}))
    assert (
        client(dead.model_copy(update={"mlflow_uri": mlflow_uri})).get_run(run_id).data.metrics["finetune.loss"] == 0.2
    )


def test_a_server_that_goes_away_under_way_is_unreachable(tracked: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    run = evaluated_run(tracked, "cut", "t-cut")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "client", lambda _: MlflowClient("http://127.0.0.1:9"))
    with pytest.raises(Unreachable, match="MLflow"):
        publish(run, tracked)


def test_what_mlflow_refuses_is_no_server_that_is_away(tracked: Settings) -> None:
    from mlflow.exceptions import MlflowException, RestException

    mlflow = client(tracked)
    with pytest.raises(MlflowException, match="Names may only contain"), answering(tracked):
        mlflow.log_metric(publish(evaluated_run(tracked, "odd", "t-odd"), tracked), "(cm)", 1)
    with pytest.raises(RestException), answering(tracked):
        mlflow.get_run("0" * 32)


def test_a_slice_of_any_name_and_a_cut_history_are_published(tracked: Settings) -> None:
    run = evaluated_run(tracked, "named", "t-named")
    output = run.folder(EVALUATE) / "output.json"
    output.write_text(output.read_text().replace('"digits":', '"größe/../(cm)":'))
    history = run.folder(FINETUNE) / "history.jsonl"
    history.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    mlflow = client(tracked)
    run_id = publish(run, tracked)
    found = mlflow.get_run(run_id).data.metrics
    assert found["accuracy.candidate.größe/_/_cm_"] == pytest.approx(0.95)
    assert "evaluate.seconds" in found
    assert [metric.step for metric in mlflow.get_metric_history(run_id, "loss")] == [1]


@given(st.text(min_size=1, max_size=400))
def test_mlflow_takes_every_name(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(metric_name(f"right.{name}"))


def test_a_failure_leaves_its_reason(tracked: Settings) -> None:
    run = evaluated_run(tracked, "failed", "t-failed")
    (run.folder(EVALUATE) / "output.json").unlink()
    run.write_failure(EVALUATE, ValueError("3 of 600 questions unanswered"))
    run_id = publish(run, tracked)
    found = client(tracked).get_run(run_id)
    assert found.data.tags["failure.evaluate"] == "ValueError: 3 of 600 questions unanswered"
    assert found.info.status == "FAILED"
    note_failure(run, "gate", "worker lost", tracked)
    assert client(tracked).get_run(run_id).data.tags["failure.gate"] == "worker lost"


def test_an_unreachable_server_is_named(dead: Settings) -> None:
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9"):
        client(dead)


def test_flatten_names_fields_by_their_path() -> None:
    assert dict(flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": None})) == {
        "a.b": "1", "a.c": "[1, 2]", "d": "x", "e": "null",
    }  # fmt: skip
