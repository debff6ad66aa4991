"""What rules and dashboards ask Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from tests.pipelines.monitoring.programs import MONITORING, RULES

DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
METRIC = re.compile(r"(?<![\w:])(?:vllm:|vlmops_|vlmops:|caddy_|process_)[\w:]+")


def in_rules() -> dict[str, str]:
    """By alert or record."""
    return {
        rule.get("alert") or rule["record"]: rule["expr"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }


def in_dashboards() -> dict[str, str]:
    """By dashboard, panel and target."""
    return dict(_targets())


def _targets() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}/{panel['title']}/{target['refId']}", target["expr"]


def metrics_of(expressions: Iterator[str] | list[str]) -> set[str]:
    """The names in expressions."""
    return {name for expression in expressions for name in METRIC.findall(expression)}


def asked_of(prefix: str) -> set[str]:
    """What both ask of one exporter, by the beginning of its names."""
    everything = [*in_rules().values(), *in_dashboards().values()]
    return {name for name in metrics_of(everything) if name.startswith(prefix)}
