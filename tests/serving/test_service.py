"""The commands: what serves, stopping it, asking it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.errors import BAD_INPUT, DONE
from pipelines.settings import Settings
from serving import ask, service
from serving.promote import Promotion
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry


def test_status_and_stop(
    machine: Settings, registry: RecordingRegistry, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    Promotion(machine, registry, make(1), DOUBLE).run()
    assert service.main(["status"]) == DONE
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["version"], shown["holding"]) == ("unreachable", 1, False)  # no front runs
    assert service.main(["stop"]) == DONE
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


def test_ask(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    start_front: Callable[[float], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = tmp_path / "x.png"
    assert ask.main([str(image), "question 1"]) == BAD_INPUT
    Image.new("RGB", (8, 8)).save(image)
    assert ask.main([str(image), "question 1"]) == BAD_INPUT
    start_front(10)
    Promotion(machine, registry, make(1), DOUBLE).run()
    capsys.readouterr()
    assert ask.main([str(image), "question 1"]) == DONE
    assert capsys.readouterr().out == "answer of v1\n"
