"""The real vLLM on a CPU: two adapters change places in one engine, under traffic. Random weights are enough.

What the engine double imitates of these endpoints is held against the same engine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from pipelines.config import Config
from pipelines.errors import PromotionFailed
from pipelines.settings import Settings
from pipelines.system.manifest import manifest_digest, write_manifest
from serving.adapter import read_adapter
from serving.client import command, served_names
from serving.engine import Engine, engine, start_in_service
from serving.promote import Promotion
from serving.served import Served, running, write_served
from serving.strategies.in_place import CACHES
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.recorded_golden import SOMETHING, record_golden
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import IMAGE, Traffic
from training.adapter import LoraShape, save_adapter
from training.builtin.architecture import build_model
from training.builtin.processor import build_processor
from training.merge import LoraReader
from training.model import attach_lora, load_quantized
from training.served_adapter import export_adapter

TEXT: dict[str, object] = {"type": "text", "text": "question 1"}
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The built-in dense model, untrained."""
    processor = build_processor()
    torch.manual_seed(0)
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    write_manifest(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def versions(smoke: Config, base: Path, tmp_path: Path) -> tuple[Served, Served]:
    """Two adapters on it, large enough to be seen."""
    adapted = attach_lora(load_quantized(base, torch.float32, "cpu"), "attention+experts", 8, 16, seed=0)
    made = []
    for number in (1, 2):
        torch.manual_seed(number)
        for module in adapted.values():
            torch.nn.init.normal_(module.b, std=0.3)
        trained = tmp_path / f"trained-{number}"
        save_adapter(adapted, LoraShape("attention+experts", 8, 16), "a" * 64, trained)
        folder = export_adapter(LoraReader(trained, None), base, tmp_path / f"adapter-{number}", {}).path
        made.append(_version(number, base, folder, smoke))
    return made[0], made[1]


def _version(number: int, base: Path, adapter: Path, config: Config) -> Served:
    settled = {"watch_seconds": 1.0, "hold_seconds": 120.0, "strategy": "adapter"}
    return Served(
        version=number,
        digest=manifest_digest(base),
        model=base,
        adapter=read_adapter(adapter, manifest_digest(adapter)),
        golden=adapter.with_name(f"golden-{number}.jsonl"),
        serving=config.serving.model_copy(update=settled),
        images=config.images,
        hardware=config.hardware,
    )


@pytest.fixture
def vllm(machine: Settings, versions: tuple[Served, Served]) -> Engine:
    """In service with the first, which is not released yet."""
    first, _ = versions
    started = start_in_service(first.launch(), machine.engine_port, first.log(machine))
    started.wait_ready(first.serving.start_seconds)
    return started


def test_adapters_change_places_under_traffic(
    vllm: Engine,
    versions: tuple[Served, Served],
    machine: Settings,
    registry: RecordingRegistry,
    start_front: Callable[[float], None],
    make: Maker,
) -> None:
    first, second = versions
    assert _status(vllm.url, "/v1/chat/completions", {"messages": _body("", [TEXT])["messages"]}) == 400
    answers = {version.version: _recorded(vllm, version) for version in (second, first)}
    assert not answers[1] & answers[2]
    _require_alike(vllm, make, first)
    start_front(120)
    write_served(machine, first)
    assert Promotion(machine, registry, first).run().strategy == "none"
    with Traffic(machine, first.serving.name, rate=4, **SOMETHING) as traffic:
        runs = [Promotion(machine, registry, version).run() for version in (second, first, second)]
    assert [run.strategy for run in runs] == ["adapter"] * 3
    assert list(running(machine)) == [vllm.pid]
    assert registry.champion == 2
    assert traffic.outcomes.total() > 20
    with pytest.raises(PromotionFailed, match=r"greater than max_lora_rank(.|\n)*v2 serves again"):
        Promotion(machine, registry, _too_wide(second)).run()
    assert (list(running(machine)), registry.champion) == ([vllm.pid], 2)
    assert {outcome.replace(" ", "") for outcome in traffic.outcomes} <= answers[1] | answers[2]


def _too_wide(version: Served) -> Served:
    """A version that says of itself that the engine has a place for it, and has not."""
    assert version.adapter is not None
    folder = version.adapter.path.with_name("adapter-3")
    shutil.copytree(version.adapter.path, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 64}))
    write_manifest(folder, lora=version.adapter.loading.model_dump())
    golden = version.golden.with_name("golden-3.jsonl")
    # Other answers, or no question would tell it from what runs.
    golden.write_text(version.golden.read_text().replace('"answer":"', '"answer":"other '))
    wide = version.adapter.model_copy(update={"path": folder, "digest": manifest_digest(folder)})
    return version.model_copy(update={"version": 3, "adapter": wide, "golden": golden})


def _require_alike(vllm: Engine, make: Maker, loaded: Served) -> None:
    """What has a name is not loaded again; a name of the base or of nothing is refused; what goes is not served."""
    imitated = replace(make, adapters=True)(9)
    with engine(imitated.launch(DOUBLE), make.folder / "double.log") as double:
        double.wait_ready(10)
        for url, version in ((vllm.url, loaded), (double.url, imitated)):
            assert version.adapter is not None
            name, request = version.serving.name, version.adapter.request(version.serving.name)
            assert served_names(url) == (f"{name}-base", name)
            assert _status(url, LOAD, request) == 400
            assert _status(url, LOAD, {**request, "lora_name": f"{name}-base"}) == 400
            assert _status(url, LOAD, {"lora_name": "lost", "lora_path": "/nowhere"}) == 404
            assert _status(url, UNLOAD, {"lora_name": "lost"}) == 404
            assert _status(url, UNLOAD, {"lora_name": name}) == 200
            assert served_names(url) == (f"{name}-base",)
            assert _status(url, "/v1/chat/completions", _body(name, [TEXT])) == 404
            assert _status(url, LOAD, request) == 200


def _status(url: str, path: str, body: dict[str, object]) -> int:
    return httpx.post(f"{url}{path}", json=body, timeout=60).status_code


def _recorded(vllm: Engine, version: Served) -> set[str]:
    """Put it into the engine by hand, record what it says; returns what it says to what the traffic asks."""
    assert version.adapter is not None
    name = version.serving.name
    command(vllm.url, UNLOAD, 60, {"lora_name": name})
    command(vllm.url, LOAD, 60, version.adapter.request(name))
    for cache in CACHES:
        command(vllm.url, f"/reset_{cache}_cache", 60)
    record_golden(vllm.url, version)
    return {_asked(vllm, name, content).replace(" ", "") for content in ([TEXT], [IMAGE, TEXT])}


def _body(name: str, content: list[dict[str, object]]) -> dict[str, object]:
    return {"model": name, "messages": [{"role": "user", "content": content}], **SOMETHING}


def _asked(vllm: Engine, name: str, content: list[dict[str, object]]) -> str:
    url = f"{vllm.url}/v1/chat/completions"
    reply = httpx.post(url, json=_body(name, content), timeout=600).raise_for_status().json()
    assert reply["model"] == name
    return reply["choices"][0]["message"]["content"]
