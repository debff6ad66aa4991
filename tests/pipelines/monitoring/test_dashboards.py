"""Dashboards: each panel asks what Prometheus understands, of something that somebody exports, and shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.monitoring.series import HELP
from tests.pipelines.monitoring.expressions import DASHBOARDS, asked_of, in_dashboards, in_rules
from tests.pipelines.monitoring.programs import MONITORING, promtool

WANTED = {
    "State of the service", "Version in service", "Gate history", "KV cache in use, and requests that wait",
    "Preemptions", "Aborts and errors", "Rejections", "Latency SLO: share of slow answers", "Golden probe", "Memory",
    "Why clocks are lowered", "Free disk", "Age of the last backup", "Input changed: PSI against the training set",
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_dashboards_are_found_and_show_what_is_wanted() -> None:
    assert len(DASHBOARDS) == 3
    assert {panel["title"] for path in DASHBOARDS for panel in read(path)["panels"]} >= WANTED


def test_every_expression_is_one(tmp_path: Path) -> None:
    # What a panel asks is read as a rule would be.
    rules = [{"record": f"panel:{n}", "expr": expression} for n, expression in enumerate(in_dashboards().values())]
    assert len(rules) >= 40
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", "--lint=none", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_asked_of_us_we_export() -> None:
    front = {"vlmops_front_requests_total", "vlmops_front_unknown_keys_total"}  # tests/serving asks the keys service
    assert asked_of("vlmops_") - front <= set(HELP)
    assert asked_of("vlmops:") <= set(in_rules())


def test_what_we_export_is_asked_for() -> None:
    assert set(HELP) <= asked_of("vlmops_")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    dashboard = read(path)
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    panels = dashboard["panels"]
    assert dashboard["uid"] == f"vlmops-{path.stem}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {uid}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert panel["targets"], panel["title"]
        assert not [other for other in panels if other is not panel and _overlap(place, other["gridPos"])]


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    return not (apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"])


def test_what_says_that_inputs_changed_says_no_more() -> None:
    panels = [panel for path in DASHBOARDS for panel in read(path)["panels"] if "vlmops_input_psi" in str(panel)]
    assert panels
    assert all("Input changed" in panel["title"] and "worse" in panel["description"] for panel in panels)
