"""A real MLflow server for the tests of what talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.embedded.mlflow_server import mlflow_server
from pipelines.settings import Settings


@pytest.fixture(scope="session")
def mlflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps what it is told."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_uri(mlflow_home: Path) -> Iterator[str]:
    """The address of a server that is there for the whole session."""
    with mlflow_server(Settings(home=mlflow_home)) as uri:
        yield uri


@pytest.fixture
def tracked(settings: Settings, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that name the real server, in this process and in its children."""
    monkeypatch.setenv("VLMOPS_MLFLOW_URI", mlflow_uri)
    return Settings()


@pytest.fixture
def dead(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that name a server which is not there."""
    monkeypatch.setenv("VLMOPS_MLFLOW_URI", "http://127.0.0.1:9")
    return Settings()


@pytest.fixture(autouse=True)
def _no_inherited_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLMOPS_MLFLOW_URI", raising=False)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Stands for an exported model; the registry never reads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    return folder
