"""A merged model as our own stream writes it, and llm-compressor where its environment is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from tests.training.parts import Configure
from training.weights.checkpoint import open_checkpoint
from training.weights.making import make
from training.weights.stream import Pass

Merge = Callable[[BaseSnapshot], Path]


@pytest.fixture
def llm_compressor() -> str:
    """Interpreter of its environment."""
    python = Settings().quantize_python
    if python is None or not Path(python).is_file():
        pytest.skip("no .venv-quantize here: `make quantize-env`")
    return python


@pytest.fixture(scope="session")
def merge(tmp_path_factory: pytest.TempPathFactory, configure: Configure) -> Merge:
    """Writes a base in bf16 with a matrix for each projection of each expert; an update would change nothing here."""
    done: dict[str, Path] = {}

    def write(base: BaseSnapshot) -> Path:
        if base.digest not in done:
            folder = tmp_path_factory.mktemp("merged")
            checkpoint, scheme = open_checkpoint(base.path, base.digest), SCHEMES["bf16"]
            make(Pass(checkpoint, None, {"merged": scheme}, 5e9), folder, configure().images, {}).seal()
            done[base.digest] = folder / "merged"
        return done[base.digest]

    return write


@pytest.fixture
def merged(any_base: BaseSnapshot, merge: Merge) -> Path:
    """Such a model."""
    return merge(any_base)


def tensor_files(folder: Path) -> set[str]:
    """The files that the index names."""
    return set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
