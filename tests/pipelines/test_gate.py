"""The gate passes only what it is sure of, and says why not otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.artifacts import Answer, EvalReport, GateDecision
from pipelines.config import Gate, Requirement
from pipelines.gate import Answers, decide

RULES = Gate(
    requirements=(
        Requirement(slice="new", margin=0.02, minimum=0.8),
        Requirement(slice="old", margin=0.05),
    )
)


def report(test: str = "t", prompt: str = "p") -> EvalReport:
    return EvalReport(engine="e", test_digest=test, prompt_digest=prompt, evaluations=(), golden=Path("/g"))


def answers(new: str, old: str = "1" * 200, finish_reason: str = "stop") -> dict[str, Answer]:
    """Answers from strings of ones (right) and zeros (wrong)."""
    return {
        f"{name}-{number}": Answer(
            item=f"{name}-{number}",
            slice=name,
            expected="yes",
            text="yes" if mark == "1" else "no",
            finish_reason=finish_reason,
            seconds=0.1,
        )
        for name, marks in (("new", new), ("old", old))
        for number, mark in enumerate(marks)
    }


def judge(candidate: Answers | None, reference: Answers | None, **reports: EvalReport) -> GateDecision:
    merged = reports.pop("merged", None)
    assert merged is None
    return decide(
        RULES, reports.get("mine", report()), reports.get("theirs", report()), "champion v1", candidate, reference, None
    )


def reasons(decision: GateDecision) -> str:
    return "\n".join(f"{finding.name} {finding.outcome} {finding.reason}" for finding in decision.findings)


GOOD = "1" * 580 + "0" * 20
POOR = "1" * 300 + "0" * 300


def test_a_better_candidate_passes_with_its_figures() -> None:
    decision = judge(answers(GOOD), answers(POOR))
    assert decision.proceed
    assert "580 of 600 right (96.7%), +46.7 points against champion v1" in reasons(decision)


def test_an_equal_candidate_passes() -> None:
    assert judge(answers(GOOD), answers(GOOD)).outcome == "pass"


def test_a_worse_candidate_fails() -> None:
    decision = judge(answers("1" * 520 + "0" * 80), answers(GOOD))
    assert decision.outcome == "fail"
    assert "surely a loss beyond 2 points" in reasons(decision)


def test_forgetting_another_slice_fails_although_the_new_one_is_better() -> None:
    decision = judge(answers(GOOD, old="0" * 200), answers(POOR, old="1" * 200))
    assert decision.outcome == "fail"
    assert {finding.name: finding.outcome for finding in decision.findings} == {"new": "pass", "old": "fail"}


def test_too_few_items_are_inconclusive_and_say_how_many_would_do() -> None:
    decision = judge(answers("1" * 28 + "00"), answers("1" * 29 + "0"))
    assert decision.outcome == "inconclusive"
    assert not decision.proceed
    assert "items would decide" in reasons(decision)


def test_a_score_below_the_minimum_fails_even_if_the_reference_was_worse() -> None:
    decision = judge(answers("1" * 470 + "0" * 130), answers(POOR))
    assert "below the minimum 80.0%" in reasons(decision)
    assert decision.outcome == "fail"


def test_the_cost_of_quantization_has_its_own_limit() -> None:
    merged, candidate = answers(GOOD), answers("1" * 540 + "0" * 60)
    decision = decide(RULES, report(), report(), "base", candidate, answers(POOR), merged)
    assert {finding.name: finding.outcome for finding in decision.findings}["quantization"] == "fail"


@pytest.mark.parametrize("missing", ["candidate", "reference"])
def test_an_unmeasured_model_is_an_objection(missing: str) -> None:
    both = {"candidate": answers(GOOD), "reference": answers(GOOD)} | {missing: None}
    decision = judge(both["candidate"], both["reference"])
    assert decision.outcome == "fail"
    assert f"the {missing} was not measured" in reasons(decision)


def test_a_missing_answer_is_an_objection() -> None:
    candidate = answers(GOOD)
    del candidate["new-0"]
    assert "1 items were answered by only one" in reasons(judge(candidate, answers(GOOD)))


def test_a_missing_slice_is_an_objection() -> None:
    decision = judge(answers(GOOD, old=""), answers(GOOD, old=""))
    assert decision.outcome == "fail"
    assert "slice old was not measured" in reasons(decision)


def test_a_slice_without_a_requirement_is_an_objection() -> None:
    rules = Gate(requirements=(Requirement(slice="new", margin=0.02),))
    decision = decide(rules, report(), report(), "base", answers(GOOD), answers(GOOD), None)
    assert "slice old has no requirement" in reasons(decision)
    assert decision.outcome == "fail"


def test_an_unfinished_answer_is_an_objection() -> None:
    decision = judge(answers(GOOD, finish_reason="abort"), answers(GOOD))
    assert decision.outcome == "fail"
    assert "800 answers did not finish" in reasons(decision)


@pytest.mark.parametrize(
    ("other", "why"),
    [(report(test="x"), "other questions"), (report(prompt="x"), "another prompt")],
)
def test_reports_of_other_questions_are_not_compared(other: EvalReport, why: str) -> None:
    decision = judge(answers(GOOD), answers(GOOD), theirs=other)
    assert decision.outcome == "fail"
    assert why in reasons(decision)


def test_quantization_is_compared_on_the_same_items() -> None:
    merged = answers(GOOD)
    del merged["old-3"]
    decision = decide(RULES, report(), report(), "base", answers(GOOD), answers(POOR), merged)
    assert decision.outcome == "fail"
    assert "merged bf16 model answered other items" in reasons(decision)
