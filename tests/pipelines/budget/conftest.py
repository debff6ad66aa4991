"""The real model's shape, and the shipped config that is about it."""

from __future__ import annotations

import pytest

from pipelines.budget.base import Base, find_base
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT, Settings


@pytest.fixture(scope="session")
def qwen() -> Config:
    """Qwen3-VL-30B-A3B on the H200 that stands for a 48 GB card, where it was measured."""
    return load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", ("hardware=h200_capped_48gb",))


@pytest.fixture(scope="session")
def base(qwen: Config) -> Base:
    """Its shape."""
    return find_base(qwen.model.source, Settings())
