"""Servers on loopback that publish a small model, and a fetch that waits for nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.model_source import Source
from tests.training.sources.models import HF, HubSite, model
from tests.training.sources.site import Site, serving
from training.sources.remote import fetch

TOKEN = "hf_a-secret"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as server:
        yield server


@pytest.fixture
def other_site() -> Iterator[Site]:
    with serving() as server:
        yield server


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> HubSite:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return HubSite(site, model())


@pytest.fixture
def waits() -> list[float]:
    """The seconds that were to be waited."""
    return []


@pytest.fixture
def get(tmp_path: Path, waits: list[float], caplog: pytest.LogCaptureFixture) -> Callable[..., Path]:
    """Fetch into the test's cache without waiting; everything that is logged is caught."""
    caplog.set_level(logging.INFO)

    def call(source: Source = HF, *, small_only: bool = False) -> Path:
        return fetch(source, tmp_path / "cache", small_only=small_only, pause=waits.append)

    return call
