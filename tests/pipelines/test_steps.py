"""The table in pipelines/steps.py agrees with the functions it names, without importing them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import ROOT
from pipelines.steps import REDEPLOY, RETRAIN, STEPS, Step


def signature(target: str) -> tuple[list[str], str]:
    module, function = target.split(":")
    tree = ast.parse((ROOT / Path(*module.split(".")).with_suffix(".py")).read_text())
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    return [ast.unparse(a.annotation) for a in node.args.args if a.annotation], ast.unparse(node.returns or ast.Pass())


@pytest.mark.parametrize("step", STEPS.values(), ids=lambda step: step.name)
def test_step_matches_its_function(step: Step[Any]) -> None:
    parameters, returns = signature(step.target)
    assert parameters == ["Config", "Path", *(need.output.__name__ for need in step.needs)]
    assert returns == step.output.__name__


@pytest.mark.parametrize("steps", [RETRAIN, REDEPLOY])
def test_steps_are_listed_after_what_they_need(steps: tuple[Step[Any], ...]) -> None:
    for index, step in enumerate(steps):
        assert set(step.needs) <= set(steps[:index])


def test_a_core_step_needs_no_card() -> None:
    assert not [step.name for step in STEPS.values() if step.gpu and step.environment == "core"]
