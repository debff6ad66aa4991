"""Alertmanager's file, by Alertmanager's own programs: it parses, and each alert goes where it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from pipelines.errors import VlmopsError
from pipelines.settings import ROOT
from pipelines.system.processes import free_port, running, wait_until
from tests.services import require

CONFIG = ROOT / "configs" / "monitoring" / "alertmanager.yml"


def program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    return require(found, f"none of {', '.join(names)} is installed (Debian: prometheus-alertmanager)")


def test_it_parses() -> None:
    checked = subprocess.run([program("amtool"), "check-config", CONFIG], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "4 receivers" in checked.stdout
    assert "6 inhibit rules" in checked.stdout


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (["severity=critical", "alertname=ServiceDown"], "mail,slack,dingtalk,webhook"),
        (["severity=warning", "alertname=KvCacheFull"], "slack"),
        (["severity=info", "alertname=InputChanged"], "mail"),
        (["alertname=WithoutSeverity"], "mail"),
    ],
)
def test_each_severity_goes_where_it_should(labels: list[str], receivers: str) -> None:
    command = [program("amtool"), "config", "routes", "test", f"--config.file={CONFIG}", *labels]
    routed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert routed.stdout.strip() == receivers


def test_secrets_are_files() -> None:
    text = CONFIG.read_text()
    keys = set(re.findall(r"^\s*(\w*(?:password|secret|token|credentials|api_url)\w*):", text, re.MULTILINE))
    assert keys >= {"smtp_auth_password_file", "slack_api_url_file", "credentials_file"}
    assert [key for key in keys if not key.endswith("_file")] == []
    urls = [hook["url"] for to in yaml.safe_load(text)["receivers"] for hook in to.get("webhook_configs", ())]
    assert urls
    assert [url for url in urls if "?" in url or "@" in url] == []


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Alertmanager itself with our file; nobody is told, for its waits are longer than the test."""
    folder, port = tmp_path_factory.mktemp("alertmanager"), free_port()
    command = [
        program("prometheus-alertmanager", "alertmanager"), f"--config.file={CONFIG}", f"--storage.path={folder}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    log = folder / "log"
    with running(command, log):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _ready(url), 30, lambda: VlmopsError(log.read_text()), interval=0.05)
        yield url


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").is_success
    except httpx.TransportError:
        return False


def _name(labels: dict[str, str]) -> str:
    return "/".join(labels[label] for label in ("alertname", "job", "source") if label in labels)


def kept_back(url: str, *alerts: dict[str, str]) -> set[str]:
    """The names of the alerts that others keep from being told."""
    ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    body = [{"labels": labels, "endsAt": ends} for labels in alerts]
    httpx.post(f"{url}/api/v2/alerts", json=body).raise_for_status()
    names: set[str] = set()

    def all_seen() -> bool:
        found = httpx.get(f"{url}/api/v2/alerts", params={"filter": f'test="{alerts[0]["test"]}"'}).json()
        names.clear()
        names.update(_name(f["labels"]) for f in found if f["status"]["inhibitedBy"])
        return len(found) == len(alerts) and all(f["status"]["state"] != "unprocessed" for f in found)

    wait_until(all_seen, 20, lambda: VlmopsError("alerts were not seen"), interval=0.05)
    return names


def test_what_follows_from_a_worse_thing_is_not_told(alertmanager: str) -> None:
    one = {"test": "down"}
    assert kept_back(
        alertmanager,
        {**one, "alertname": "ServiceDown", "severity": "critical"},
        {**one, "alertname": "KvCacheFull", "severity": "warning"},
        {**one, "alertname": "GoldenProbeFailed", "severity": "critical"},
        {**one, "alertname": "DiskSpaceLow", "severity": "critical"},
        {**one, "alertname": "TargetDown", "severity": "warning", "job": "vllm"},
        {**one, "alertname": "TargetDown", "severity": "warning", "job": "caddy"},
        {**one, "alertname": "SourceUnknown", "severity": "warning", "source": "engine"},
        {**one, "alertname": "SourceUnknown", "severity": "warning", "source": "disk"},
    ) == {"KvCacheFull", "GoldenProbeFailed", "TargetDown/vllm", "SourceUnknown/engine"}  # fmt: skip


def test_a_broken_card_hides_its_own_heat_and_no_other_cards(alertmanager: str) -> None:
    assert kept_back(
        alertmanager,
        {"test": "card", "alertname": "GpuXid", "severity": "critical", "gpu": "0"},
        {"test": "card", "alertname": "GpuThrottled", "severity": "warning", "gpu": "0"},
    ) == {"GpuThrottled"}
    assert kept_back(
        alertmanager,
        {"test": "other", "alertname": "GpuXid", "severity": "critical", "gpu": "2"},
        {"test": "other", "alertname": "GpuThrottled", "severity": "warning", "gpu": "3"},
    ) == set()  # fmt: skip


def test_every_alert_that_it_names_exists() -> None:
    matchers = " ".join(re.findall(r'alertname =~? "([^"]*)"', CONFIG.read_text()))
    named = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", matchers))
    assert len(named) >= 5
    rules = {
        rule["alert"]
        for path in sorted(Path(CONFIG.parent, "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert named - rules == set()
