"""Models of the engine double, a registry that records, a real Caddy, and ports of our own."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from pipelines.config import Config, Hardware, Images, Serving
from pipelines.errors import MachineUnfit
from pipelines.settings import Settings
from pipelines.system.manifest import manifest_digest, write_manifest
from pipelines.system.processes import require_free_port, running, wait_until
from serving import front
from serving.adapter import LoraAdapter, read_adapter
from serving.engine import find
from serving.served import Served, engines
from tests.serving.registry_double import RecordingRegistry

DOUBLE = (sys.executable, str(Path(__file__).with_name("engine_double.py")))
"""The program that is started in place of vLLM."""

QUESTIONS = tuple(f"question {number}" for number in range(6))


@dataclass(frozen=True)
class Maker:
    """Makes versions of a model that the double serves."""

    folder: Path
    serving: Serving

    device: Literal["cpu", "cuda"] = "cpu"

    adapters: bool = False
    """Whether versions are adapters on one base."""

    def __call__(self, version: int, fault: str = "", *, golden_fault: bool = False, **behaviour: object) -> Served:
        """A version whose answers end in its number.

        Args:
            golden_fault: Record golden answers that the model does not give.
        """
        answers = dict.fromkeys(QUESTIONS, f"answer of v{version}")
        behaves = json.dumps({"answers": answers, "fault": fault, **behaviour})
        model = self.folder / (f"adapter-{version}" if self.adapters else f"model-{version}")
        model.mkdir(parents=True)
        if self.adapters:
            adapter = _write_adapter(model, behaves)
            model = self.folder / "base"
            digest = _write_base(model)
        else:
            adapter, digest = None, self._write_model(model, behaves)
        golden = self.folder / f"golden-{version}" / "golden.jsonl"
        golden.parent.mkdir()
        golden.write_text("".join(map(_golden, QUESTIONS, ["other" if golden_fault else a for a in answers.values()])))
        return Served(
            version=version,
            digest=digest,
            model=model,
            adapter=adapter,
            golden=golden,
            serving=self.serving,
            images=Images(),
            hardware=Hardware(name="test", device=self.device, memory_gib=1),
        )

    def _write_model(self, model: Path, behaves: str) -> str:
        if self.device == "cpu":
            (model / "double.json").write_text(behaves)
        else:  # what differs between two versions are their weights alone
            save_file({"weight": np.zeros(2, np.int8)}, model / "model.safetensors", {"double": behaves})
        (model / "chat_template.jinja").write_text("{{ messages }}")
        return write_manifest(model)


def _write_adapter(folder: Path, behaves: str) -> LoraAdapter:
    save_file({"weight": np.zeros(2, np.int8)}, folder / "adapter_model.safetensors", {"double": behaves})
    digest = write_manifest(folder, lora={"max_rank": 8, "experts": True, "vision": False})
    return read_adapter(folder, digest)


def _write_base(folder: Path) -> str:
    if not folder.exists():
        folder.mkdir()
        (folder / "double.json").write_text(json.dumps({"answers": {}}))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        write_manifest(folder)
    return manifest_digest(folder)


def _golden(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    return json.dumps({"item": question, "messages": messages, "max_tokens": 8, "answer": answer}) + "\n"


@pytest.fixture
def serving(smoke: Config) -> Serving:
    """Deadlines that a double can keep."""
    seconds = {"start": 10.0, "reload": 2.0, "drain": 3.0, "hold": 20.0, "watch": 0.5}
    deadlines = {f"{name}_seconds": value for name, value in seconds.items()}
    return smoke.serving.model_copy(update={"strategy": "auto", **deadlines})


@pytest.fixture
def make(tmp_path: Path, serving: Serving) -> Maker:
    """Makes versions."""
    return Maker(tmp_path / "versions", serving)


@pytest.fixture
def machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with free ports; no engine in service survives the test."""
    for name in ("FRONT", "ENGINE", "READY", "KEYS"):
        monkeypatch.setenv(f"VLMOPS_{name}_PORT", str(_quiet_port()))
    ours = Settings()
    yield ours
    for leader in find(engines(ours)):
        os.killpg(leader, 9)


def _quiet_port() -> int:
    """A free port that the system gives to no outgoing connection: an engine must get it back after a pause."""
    while True:
        port = random.randrange(12_000, 30_000)
        with suppress(MachineUnfit):
            require_free_port(port, "a test")
            return port


@pytest.fixture
def registry(tmp_path: Path) -> RecordingRegistry:
    """A registry in a file."""
    return RecordingRegistry(tmp_path / "registry.json")


def wait_for_caddy(machine: Settings, seconds: float = 20.0) -> None:
    """Wait until it takes requests: its admin socket answers before its ports do."""

    def takes() -> bool:
        ports = (machine.front_port, machine.ready_port)
        return front.in_flight(machine) is not None and all(map(_is_listened_to, ports))

    wait_until(takes, seconds, lambda: AssertionError("no Caddy"), 0.05)


def _is_listened_to(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start_front(machine: Settings, serving: Serving, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Starts a real Caddy and keys service that hold for the given seconds; nobody starts them again."""
    with ExitStack() as block:

        def start(hold_seconds: float, **more: object) -> None:
            front.prepare(machine, serving.model_copy(update={"hold_seconds": hold_seconds, **more}))
            for ward in front.wards(machine):
                log = tmp_path / f"{ward.name}.log"
                block.enter_context(running(ward.command, log, ward.environment, ward.folder))
            wait_for_caddy(machine)

        yield start


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Every process that the test started has ended."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert [p.cmdline() for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
