"""Rules of the house that no linter knows: sizes, docs that stay true, nothing that belongs to one machine."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest

from pipelines.cli import parser
from pipelines.config import Config
from pipelines.settings import ROOT

PACKAGES = ("pipelines", "training", "serving", "dags")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
README = ROOT / "README.md"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions() -> list[int]:
    return [
        (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_there_are_modules() -> None:
    assert len(MODULES) > 30


def test_modules_and_functions_stay_small() -> None:
    assert {path.name: lines(path) for path in MODULES if lines(path) > 300} == {}
    assert statistics.median(map(lines, MODULES)) <= 120
    assert statistics.median(functions()) <= 12


def test_a_dag_holds_no_work() -> None:
    assert {path.name: lines(path) for path in (ROOT / "dags").glob("*.py") if lines(path) > 80} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_module_is_a_drawer() -> None:
    assert not [path for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_only_settings_reads_the_environment() -> None:
    # To pass the environment on to a child is not to read a setting from it.
    reads = re.compile(r"os\.getenv|os\.environ\.get|os\.environ\[")
    assert [str(path) for path in MODULES if path.stem != "settings" and reads.search(path.read_text())] == []


@pytest.mark.parametrize(("lock", "build"), [("cuda", "torch==2.13.0"), ("cpu", "torch==2.13.0+cpu")])
def test_a_lock_has_one_build_of_torch(lock: str, build: str) -> None:
    lines = (ROOT / "requirements" / f"ml-{lock}.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("torch==")] == [build]


def test_every_path_in_the_readme_exists() -> None:
    text = README.read_text()
    paths = set(
        re.findall(r"`((?:dags|pipelines|training|serving|configs|tests|benchmarks|docs|requirements)/[\w./-]*)`", text)
    )
    paths |= set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert len(paths) >= 5
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_command_in_the_readme_exists_and_is_there() -> None:
    text = README.read_text()
    actions = [action for action in parser()._actions if action.choices]
    commands = set(actions[0].choices or {})
    assert set(re.findall(r"\bvlmops ([a-z]+)\b", text)) == commands
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    made = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)\b", text, re.MULTILINE))
    assert {"demo", "test"} <= made <= targets


def test_every_section_of_the_config_is_in_the_readme() -> None:
    text = README.read_text()
    assert [name for name in Config.model_fields if f"`{name}`" not in text] == []


def test_nothing_in_the_tree_belongs_to_one_machine() -> None:
    pattern = r"(^|[^A-Za-z.])/(tmp|work|farm|root|home)/[a-z]"
    found = subprocess.run(
        ["git", "grep", "-nE", pattern, "--", ".", ":!tests/pipelines/test_house.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.stdout == ""
