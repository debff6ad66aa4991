"""MLflow shows what the run's directory says, also after it was away, and never twice."""

from __future__ import annotations

import logging

import pytest

from pipelines.errors import Unreachable
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, FINETUNE
from pipelines.tracking import client, flatten, note_failure, publish, publish_if_reachable
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
