"""A very small base and data set, made by the same code as the real ones, for everything below tests/training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT
from pipelines.system.manifest import manifest_digest
from tests.training.parts import Configure, adapted_model, requiring, store_adapter, write_source
from training.builtin.build import build_base
from training.builtin.recipe import Recipe
from training.chat.encoding import Encoder, load_processor
from training.data import prepare

PICTURES = {"printed": 40, "colours": 12, "shapes": 12}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small products gain nothing from two threads, and lose much when the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def configure() -> Configure:
    """The embedded default with overrides, `section.field=value` each."""

    def load(*overrides: str) -> Config:
        return load_config(ROOT / "configs" / "smoke.yaml", ("train.steps=10", "train.batch_size=4", *overrides))

    return load


@pytest.fixture(scope="session")
def moe_base(tmp_path_factory: pytest.TempPathFactory) -> BaseSnapshot:
    """A mixture of experts after a few steps."""
    return _base(
        tmp_path_factory.mktemp("bases") / "moe", Recipe("moe", threads=1, steps=12, batch_size=8, pictures=PICTURES)
    )


@pytest.fixture(scope="session")
def dense_base(tmp_path_factory: pytest.TempPathFactory) -> BaseSnapshot:
    """Its dense sister."""
    return _base(
        tmp_path_factory.mktemp("bases") / "dense", Recipe("dense", threads=1, steps=4, batch_size=8, pictures=PICTURES)
    )


@pytest.fixture(params=["moe", "dense"])
def any_base(request: pytest.FixtureRequest) -> BaseSnapshot:
    """Either of them."""
    base: BaseSnapshot = request.getfixturevalue(f"{request.param}_base")
    return base


@pytest.fixture(scope="session")
def encoder(moe_base: BaseSnapshot) -> Encoder:
    """Of the small base."""
    return Encoder(load_processor(moe_base.path, 4096, 65536))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as a user would bring it: 40 rows that name no split."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder, {"printed": 20, "colours": 12, "shapes": 8})
    return folder


@pytest.fixture(scope="session")
def data(
    source: Path, moe_base: BaseSnapshot, configure: Configure, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """The same, prepared."""
    config = configure(f"data.source=file://{source}", requiring("printed", "colours", "shapes"))
    return prepare(config, tmp_path_factory.mktemp("data"), moe_base)


@pytest.fixture
def adapter(any_base: BaseSnapshot, tmp_path: Path) -> Adapter:
    """An adapter of attention and experts with random weights, as after training."""
    model, adapted = adapted_model(any_base)
    del model
    return store_adapter(adapted, any_base, tmp_path / "adapter")


def _base(folder: Path, recipe: Recipe) -> BaseSnapshot:
    build_base(recipe, folder)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    digest = manifest_digest(folder)
    return BaseSnapshot(
        path=folder, source="file:///test", revision=digest[:40], digest=digest, architecture=architecture
    )
