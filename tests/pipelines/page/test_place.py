"""A person finds the page: from the command line, and from a version in a real MLflow, whose own page shows it."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import pytest

from pipelines.gate import gate
from pipelines.page.place import FILE, page_of
from pipelines.registry import register
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.status import show_run
from pipelines.steps import EVALUATE, EXPORT, GATE, REGISTER
from pipelines.tracking import client
from tests.pipelines.finished_run import evaluated_run
from tests.pipelines.page.judged_run import judged

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_status_names_the_page_once_it_is_there(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(settings)
    show_run(found.run)
    assert "report:" not in capsys.readouterr().out
    page = found.page()
    show_run(found.run)
    assert page == page_of(found.run)
    assert f"report: {page}" in capsys.readouterr().out


def registered(settings: Settings) -> tuple[Run, str]:
    """A run whose candidate passed the gate and is registered, and the page's address on its version."""
    run = evaluated_run(settings, "one", f"m-{uuid.uuid4().hex[:8]}")
    for step in (GATE, REGISTER):
        run.folder(step).mkdir()
    decision = gate(run.config, run.folder(GATE), run.read(EVALUATE))
    run.write(GATE, decision, seconds=1, peak_gib=1)
    version = register(run.config, run.folder(REGISTER), run.read(EXPORT), run.read(EVALUATE), decision)
    assert version.report is not None
    return run, version.report


def test_a_decision_stands_where_its_page_fails(tracked: Settings, caplog: pytest.LogCaptureFixture) -> None:
    run = evaluated_run(tracked, "unseen", f"m-{uuid.uuid4().hex[:8]}")
    (run.folder(GATE) / FILE).mkdir(parents=True)
    assert gate(run.config, run.folder(GATE), run.read(EVALUATE)).outcome == "pass"
    assert "the decision stands" in caplog.text


def test_a_version_says_where_its_report_is(tracked: Settings) -> None:
    run, address = registered(tracked)
    mlflow = client(tracked)
    version = mlflow.get_model_version(run.config.registry.model, "1")
    assert version.tags["report"] == address
    assert f"]({address})" in version.description
    found = re.fullmatch(rf"{tracked.mlflow_uri}/#/experiments/(\d+)/runs/(\w+)/artifacts/(gate/report\.html)", address)
    assert found is not None
    assert mlflow.get_run(found[2]).info.experiment_id == found[1]
    assert found[3] in {file.path for file in mlflow.list_artifacts(found[2], "gate")}


@pytest.mark.timeout(180)
def test_a_person_clicks_from_the_version_to_the_page(tracked: Settings, browser: Browser) -> None:
    run, address = registered(tracked)
    page = browser.new_page()
    page.goto(f"{tracked.mlflow_uri}/#/models/{run.config.registry.model}/versions/1")
    link = page.get_by_role("link", name="Report: what the gate saw")
    link.wait_for(timeout=60_000)
    assert link.get_attribute("href") == address
    page.goto(address)
    shown = page.frame_locator("iframe")
    shown.get_by_role("heading", name="Pass").wait_for(timeout=60_000)
    assert shown.get_by_text("It may replace base").is_visible()
