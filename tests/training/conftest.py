"""A very small base and data set, made by the same code as the real ones, for everything below tests/training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.config import Config, load_config
from pipelines.manifest import manifest_digest
from pipelines.settings import ROOT
from training.adapter import LoraShape, save_adapter
from training.data import prepare
from training.drawings import draw_many
from training.encoding import Encoder, load_processor
from training.model import Adapted, attach_lora, load_quantized
from training.tiny import Recipe, build_base

DIE = Path(__file__).with_name("die.py")
PICTURES = {"printed": 40, "colours": 12, "shapes": 12}

Configure = Callable[..., Config]


@pytest.fixture(scope="session")
def configure() -> Configure:
    """The embedded default with overrides, `section.field=value` each."""

    def load(*overrides: str) -> Config:
        return load_config(ROOT / "configs" / "smoke.yaml", ("train.steps=10", "train.batch_size=4", *overrides))

    return load


@pytest.fixture(scope="session")
def moe_base(tmp_path_factory: pytest.TempPathFactory) -> BaseSnapshot:
    """A mixture of experts after a few steps."""
    return _base(tmp_path_factory.mktemp("bases") / "moe", Recipe("moe", steps=12, batch_size=8, pictures=PICTURES))


@pytest.fixture(scope="session")
def dense_base(tmp_path_factory: pytest.TempPathFactory) -> BaseSnapshot:
    """Its dense sister."""
    return _base(tmp_path_factory.mktemp("bases") / "dense", Recipe("dense", steps=4, batch_size=8, pictures=PICTURES))


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
    return prepare(configure(f"data.source=file://{source}"), tmp_path_factory.mktemp("data"), moe_base)


@pytest.fixture
def adapter(any_base: BaseSnapshot, tmp_path: Path) -> Adapter:
    """An adapter of attention and experts with random weights, as after training."""
    model, adapted = adapted_model(any_base)
    del model
    return store_adapter(adapted, any_base, tmp_path / "adapter")


def write_source(folder: Path, counts: dict[str, int]) -> list[dict[str, object]]:
    """Write drawings as `data.jsonl` and images; returns the rows."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for i, drawing in enumerate(draw_many(counts, seed=5)):
        drawing.image.save(folder / "images" / f"{i}.png")
        question = [{"type": "image", "image": f"images/{i}.png"}, {"type": "text", "text": drawing.question}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": drawing.answer}]
        rows.append({"id": str(i), "slice": drawing.slice, "messages": messages})
    write_rows(folder, rows)
    return rows


def write_rows(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `data.jsonl`."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def adapted_model(base: BaseSnapshot, rank: int = 4) -> tuple[PreTrainedModel, dict[str, Adapted]]:
    """The base in NF4 with LoRA whose weights are random on both sides."""
    model = load_quantized(base.path, torch.float32, "cpu")
    adapted = attach_lora(model, "attention+experts", rank, 2.0 * rank, seed=1)
    with torch.no_grad():
        for module in adapted.values():
            module.b.normal_(std=0.02)
    return model, adapted


def store_adapter(adapted: dict[str, Adapted], base: BaseSnapshot, folder: Path, rank: int = 4) -> Adapter:
    """Save LoRA weights as the finetune step does."""
    digest = save_adapter(adapted, LoraShape("attention+experts", rank, 2.0 * rank), base.digest, folder)
    facts = dict.fromkeys(("trainable_parameters", "steps", "loss", "eval_loss", "tokens_per_second", "peak_gib"), 1)
    return Adapter(path=folder, digest=digest, base_digest=base.digest, **facts)


def run_until_killed(
    where: str, at: int, step: str, config: Config, folder: Path, *inputs: BaseSnapshot | Dataset | Adapter
) -> None:
    """Run a step in another process that kills itself (SIGKILL) when `where` is called for the `at`-th time."""
    folder.mkdir(exist_ok=True)
    arguments = [config.model_dump_json(), *(artifact.model_dump_json() for artifact in inputs)]
    command = [sys.executable, str(DIE), where, str(at), step, str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == -9, result.stderr[-2000:]


def _base(folder: Path, recipe: Recipe) -> BaseSnapshot:
    build_base(recipe, folder)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    digest = manifest_digest(folder)
    return BaseSnapshot(
        path=folder, source="file:///test", revision=digest[:40], digest=digest, architecture=architecture
    )
