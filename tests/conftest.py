"""Fixtures that every test may use; nothing here imports torch, Airflow or MLflow."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT, Settings

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")  # a machine that is busy breaks no rule


@pytest.fixture(scope="session")
def smoke() -> Config:
    """The embedded default."""
    return load_config(ROOT / "configs" / "smoke.yaml")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a machine of our own: everything below tmp_path, in this process and in its children."""
    monkeypatch.setenv("VLMOPS_HOME", str(tmp_path / "home"))
    return Settings()
