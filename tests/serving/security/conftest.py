"""The real vLLM behind the real front, started once: an untrained model is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from pipelines.config import Config
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import free_port, running
from serving import front
from serving.client import metrics
from serving.engine import Engine, Launch, engine
from serving.served import IN_SERVICE
from tests.serving.conftest import wait_for_caddy


@dataclass(frozen=True)
class Service:
    """A front and its engine."""

    settings: Settings
    engine: Engine

    def chat(self, *content: dict[str, object], **more: object) -> httpx.Response:
        """Ask about parts of a message."""
        body = {"model": "digits", "max_tokens": 2, "messages": [{"role": "user", "content": list(content)}], **more}
        return self.post("/v1/chat/completions", json=body)

    def post(self, path: str, **more: object) -> httpx.Response:
        """Send with the key."""
        headers = {"Authorization": f"Bearer {credential(self.settings.state, 'front_key')}"}
        return httpx.post(self.settings.front_url + path, headers=headers, timeout=120, **more)

    def started(self) -> float:
        """When the engine that answers now was started."""
        return metrics(self.engine.url).started


@pytest.fixture(scope="module")
def service(smoke: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    model = _build(folder / "model")
    launch = Launch(
        model=model,
        names=("digits",),
        serving=smoke.serving,
        images=smoke.images,
        hardware=smoke.hardware,
        extra=IN_SERVICE,
    )
    with ExitStack() as block:
        started = block.enter_context(engine(launch, folder / "engine.log"))
        ports = {f"{name}_port": free_port() for name in ("front", "ready", "keys")}
        settings = Settings(home=folder / "home", engine_port=urlsplit(started.url).port, **ports)
        front.prepare(settings, smoke.serving.model_copy(update={"hold_seconds": 20.0}))
        for ward in front.wards(settings):
            block.enter_context(running(ward.command, folder / f"{ward.name}.log", ward.environment, ward.folder))
        wait_for_caddy(settings)
        started.wait_ready(smoke.serving.start_seconds)
        front.release(settings)
        front.wait_noticed(settings)
        yield Service(settings, started)


def _build(folder: Path) -> Path:
    import torch

    from training.builtin.architecture import build_model
    from training.builtin.processor import build_processor

    processor = build_processor()
    build_model("dense", processor).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
