"""Absolute limits, at their edge."""

from __future__ import annotations

import pytest

from pipelines.config_gate import Gate, Requirement
from pipelines.evaluation import Answer
from pipelines.judgement.guards import guards

RULES = Gate(requirements=(Requirement(slice="s", margin=0.1),), max_empty=0.02, max_cut=0.1)


def some(text: str = "7", finish_reason: str = "stop", of: int = 1) -> list[Answer]:
    return [Answer(item="", slice="s", expected="7", text=text, finish_reason=finish_reason, seconds=0.1)] * of


@pytest.mark.parametrize(("empty", "outcome"), [(0, "pass"), (1, "pass"), (2, "fail")])
def test_empty_answers_have_a_limit(empty: int, outcome: str) -> None:
    given = some(" ", of=empty) + some(of=50 - empty)
    found = {finding.name: finding for finding in guards(RULES, dict(enumerate(given)))}  # type: ignore[arg-type]
    assert found["empty"].outcome == outcome
    assert f"{empty} of 50 answers are empty" in found["empty"].reason
    assert found["cut"].outcome == "pass"


@pytest.mark.parametrize(("cut", "outcome"), [(5, "pass"), (6, "fail")])
def test_answers_that_were_cut_have_a_limit(cut: int, outcome: str) -> None:
    given = some(finish_reason="length", of=cut) + some(of=50 - cut)
    found = {finding.name: finding for finding in guards(RULES, dict(enumerate(given)))}  # type: ignore[arg-type]
    assert found["cut"].outcome == outcome
    assert f"{cut} of 50 answers are cut at max_new_tokens ({cut / 50:.1%})" in found["cut"].reason
    assert found["empty"].outcome == "pass"
