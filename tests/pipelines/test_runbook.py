"""The runbook says what to do about every alert there is, about no other, and names only what exists."""

from __future__ import annotations

import re

import pytest
import yaml

from pipelines.cli import parser
from pipelines.config import Config
from pipelines.config_alerts import Alerts
from pipelines.monitoring.conditions import CONDITIONS
from pipelines.settings import ROOT

RUNBOOK = ROOT / "docs" / "operations.md"
TEXT = RUNBOOK.read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))


def rules() -> dict[str, dict[str, dict[str, str]]]:
    """Labels and annotations of every alert that Prometheus may raise."""
    found = {}
    for path in sorted((ROOT / "configs" / "monitoring" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule["alert"]: rule for rule in group["rules"] if "alert" in rule}
    return found


def anchors() -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    alerts = set(rules()) | set(CONDITIONS)
    assert len(alerts) > 20
    described = {name for name, text in SECTIONS.items() if text.startswith(("Critical. ", "Warning. ", "Info. "))}
    assert described == alerts


def test_alerts_point_to_their_sections_with_their_severity() -> None:
    for name, rule in rules().items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert SECTIONS[name].lower().startswith(rule["labels"]["severity"]), name
    for name, (severity, _, _) in CONDITIONS.items():
        assert SECTIONS[name].lower().startswith(severity), name


def test_links_within_it_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert len(links) > 15
    assert links <= anchors()


def test_commands_in_it_exist() -> None:
    actions = next(action.choices for action in parser()._actions if action.choices)
    assert actions is not None
    named = set(
        re.findall(r"\bvlmops\s+([a-z]+)\b(?!:)", "\n".join(re.findall(r"`[^`]*`|^vlmops .*$", TEXT, re.MULTILINE)))
    )
    assert len(named) > 10
    assert named <= set(actions)


NAMED = set(re.findall(r"`([a-z]+\.[a-z_]+)`", TEXT))
FIELDS = sorted(field for field in NAMED if field.partition(".")[0] in Config.model_fields)


def test_it_names_fields() -> None:
    assert len(FIELDS) > 10


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_the_config_in_it_exist(field: str) -> None:
    section, name = field.split(".")
    assert name in Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]


def test_the_sinks_in_it_are_a_config() -> None:
    [example] = re.findall(r"```yaml\n(alerts:.*?)```", TEXT, re.DOTALL)
    sinks = Alerts.model_validate(yaml.safe_load(example)["alerts"]).sinks
    assert {sink.kind for sink in sinks} == {
        "log",
        "smtp",
        "slack",
        "dingtalk",
        "feishu",
        "wecom",
        "webhook",
        "heartbeat",
    }
