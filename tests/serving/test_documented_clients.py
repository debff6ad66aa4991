"""What README and docs/serving.md tell a client to do works, letter for letter, through the real front."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipelines.keys.store import add_key
from pipelines.settings import ROOT, Settings
from pipelines.system.processes import running, wait_until
from serving import front
from serving.client import healthy
from tests.serving.conftest import DOUBLE, Maker

DOCS = ("README.md", "docs/serving.md")
ANSWERS = {"Which digit is written here?": "The digit is 7.", "Which digit comes after six?": "It is seven."}


def snippets() -> Iterator[tuple[str, str, str]]:
    """Document, language and text of each that a client runs."""
    for name in DOCS:
        for language, text in re.findall(r"```(bash|python)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
            if language == "python" or "curl" in text:
                yield name, language, text


SNIPPETS = list(snippets())


def test_there_are_snippets() -> None:
    assert [(name, language) for name, language, _ in SNIPPETS] == [
        ("README.md", "bash"),
        ("docs/serving.md", "bash"),
        *[("docs/serving.md", "python")] * 3,
    ]


@pytest.fixture
def client(machine: Settings, make: Maker, start_front: Callable[..., None], tmp_path: Path) -> Iterator[Path]:
    """A folder with an image, while a version that knows the answers serves."""
    start_front(5)
    version = make(1, answers=ANSWERS)
    with running(version.launch(DOUBLE).command(machine.engine_port), tmp_path / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        front.release(machine)
        Image.linear_gradient("L").save(tmp_path / "scan.png")
        yield tmp_path


@pytest.mark.parametrize(("document", "language", "text"), SNIPPETS, ids=lambda part: part[:14])
def test_a_snippet_does_what_it_says(client: Path, machine: Settings, document: str, language: str, text: str) -> None:
    assert "8800" in text or "PIL" in text
    assert '"digits"' in text or "PIL" in text
    text = text.replace("8800", str(machine.front_port))
    program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
    key = add_key(machine, "shop")
    env = {**os.environ, "OPENAI_API_KEY": key, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([*program, text], cwd=client, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    expected = {True: "seven", False: "The digit is 7."}["after six" in text] if "PIL" not in text else "65536"
    assert expected in ran.stdout
    assert key not in ran.stdout + ran.stderr
