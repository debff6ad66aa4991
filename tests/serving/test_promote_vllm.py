"""The real vLLM on a CPU: two models change places by restarts, and no request is lost. Random weights are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.config import Config
from pipelines.settings import Settings
from pipelines.system.manifest import write_manifest
from serving.engine import engine, start_in_service
from serving.promote import Promotion
from serving.served import Served, write_served
from tests.serving.recorded_golden import SOMETHING, record_golden
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic
from training.builtin.architecture import build_model
from training.builtin.processor import build_processor

LOST = {"abort", "error", "stream cut"}


def _version(number: int, folder: Path, config: Config) -> Served:
    processor = build_processor()
    torch.manual_seed(number)
    model = folder / f"model-{number}"
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(model)
    processor.save_pretrained(model)
    return Served(
        version=number,
        digest=write_manifest(model),
        model=model,
        golden=folder / f"golden-{number}.jsonl",
        serving=config.serving.model_copy(update={"watch_seconds": 1.0, "hold_seconds": 120.0}),
        images=config.images,
        hardware=config.hardware,
    )


@pytest.fixture
def versions(smoke: Config, machine: Settings, tmp_path: Path) -> tuple[Served, Served]:
    """The first one in service already, as after a crash of whoever started it: released, and requests wait."""
    first, second = (_version(number, tmp_path, smoke) for number in (1, 2))
    running = start_in_service(first.launch(), machine.engine_port, first.log(machine))
    with engine(replace(second.launch(), names=second.names), tmp_path / "second.log") as measured:
        measured.wait_ready(smoke.serving.start_seconds)
        said = record_golden(measured.url, second)
    running.wait_ready(smoke.serving.start_seconds)
    assert said != record_golden(machine.engine_url, first)
    write_served(machine, first)
    return first, second


def test_vllm_is_replaced_under_traffic(
    machine: Settings,
    registry: RecordingRegistry,
    versions: tuple[Served, Served],
    start_front: Callable[[float], None],
) -> None:
    first, second = versions
    start_front(120)
    assert Promotion(machine, registry, first).run().strategy == "none"
    with Traffic(machine, first.serving.name, rate=4, **SOMETHING) as traffic:
        deployment = Promotion(machine, registry, second).run()
    assert (deployment.strategy, deployment.previous, registry.champion) == ("restart", 1, 2)
    lost = {o: n for o, n in traffic.outcomes.items() if not o or o.startswith("status") or o in LOST or "Error" in o}
    assert lost == {}
    assert traffic.outcomes.total() > 40
    assert traffic.longest_seconds < deployment.hold_seconds + 15
