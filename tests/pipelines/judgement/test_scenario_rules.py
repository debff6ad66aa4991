"""Packs bring requirements and limits of their own; two reports compare only if both were asked the same packs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from pipelines.config_gate import Gate, Limit, Requirement
from pipelines.evaluation import Scenario, Score
from pipelines.gate import decide
from pipelines.judgement.scenario_rules import limits
from pipelines.judgement.side import Answers, Side
from pipelines.statistics import wilson
from tests.pipelines.judgement.sides import GOOD, answers, evaluation, outcomes, reasons, side

SLICE, VALID = "catalog/attributes", "catalog/attributes/schema_valid"
RULES = Gate(requirements=(Requirement(slice="new", margin=0.02), Requirement(slice="old", margin=0.05)))
PACK = Scenario(
    name="catalog",
    digest="a" * 64,
    requirements=(Requirement(slice=SLICE, margin=0.05),),
    limits=(Limit(metric=VALID, minimum=0.98),),
)


def share(correct: int, n: int) -> Score:
    low, high = wilson(correct, max(n, 1))
    return Score(correct=correct, n=n, low=low, high=high)


def asked(
    name: str = "candidate", *scenarios: Scenario, valid: Score | None = None, grades: float | None = 1.0, n: int = 200
) -> Side:
    """A model that was asked the test split and 200 items of the pack."""
    given: dict[str, object] = dict(answers(GOOD))
    for item, answer in answers("1" * n, "").items():
        given[f"pack-{item}"] = answer.model_copy(update={"item": f"pack-{item}", "slice": SLICE, "score": grades})
    metrics: Mapping[str, Score] = {} if valid is None else {VALID: valid}
    whole: Answers = given  # type: ignore[assignment]
    return side(whole, name, evaluation(metrics=metrics), scenarios=scenarios)


def decided(candidate: Side, reference: Side, rules: Gate = RULES) -> dict[str, str]:
    return outcomes(decide(rules, candidate, reference, None, reference.name))


def test_a_packs_rules_hold_beside_those_of_the_config() -> None:
    found = decided(asked("candidate", PACK, valid=share(199, 200)), asked("base", PACK))
    assert found == dict.fromkeys(["new", "old", SLICE, "empty", "cut", VALID], "pass")


def test_a_slice_of_a_pack_is_compared() -> None:
    worse = asked("candidate", PACK, valid=share(200, 200), grades=0.6)
    assert decided(worse, asked("base", PACK))[SLICE] == "fail"


def test_a_limit_of_a_pack_refuses() -> None:
    decision = decide(RULES, asked("candidate", PACK, valid=share(190, 200)), asked("base", PACK), None, "base")
    assert decision.outcome == "fail"
    assert "190 of 200 (95.0%, 95% interval 91.0% to 97.3%); its limit is at least 98.0%" in reasons(decision)


def test_a_scenario_that_the_reference_was_not_asked_is_an_objection() -> None:
    decision = decide(RULES, asked("candidate", PACK), side(answers(GOOD), "champion v1"), None, "champion v1")
    assert decision.outcome == "fail"
    asked_again = "champion v1 was not asked scenario catalog; evaluate it again with the questions and packs"
    assert asked_again in reasons(decision)


def test_a_missing_scenario_is_an_objection() -> None:
    decision = decide(RULES, side(answers(GOOD)), asked("champion v1", PACK), None, "champion v1")
    assert decision.outcome == "fail"
    assert "scenario catalog, which champion v1 was asked, is missing" in reasons(decision)


def test_another_version_of_a_scenario_is_an_objection() -> None:
    other = PACK.model_copy(update={"digest": "b" * 64})
    decision = decide(RULES, asked("candidate", PACK), asked("champion v1", other), None, "champion v1")
    assert "another version of scenario catalog (bbbbbbbbbbbb, here aaaaaaaaaaaa)" in reasons(decision)


def test_a_packs_items_that_were_not_answered_are_an_objection() -> None:
    decision = decide(RULES, side(answers(GOOD), scenarios=(PACK,)), asked("base", PACK), None, "base")
    assert f"slice {SLICE} was not measured" in reasons(decision)
    assert decision.outcome == "fail"


def test_two_requirements_for_a_slice_are_refused() -> None:
    rules = RULES.model_copy(update={"requirements": (*RULES.requirements, Requirement(slice=SLICE, margin=1.0))})
    decision = decide(rules, asked("candidate", PACK), asked("base", PACK), None, "base")
    assert decision.outcome == "fail"
    assert f"slice {SLICE} has 2 requirements; leave one, in gate.requirements or in its scenario" in reasons(decision)


def test_a_config_with_two_requirements_for_a_slice_is_no_config() -> None:
    with pytest.raises(ValidationError, match=r"slices with two requirements: new; leave one for each"):
        Gate(requirements=(Requirement(slice="new", margin=0.02), Requirement(slice="new", superiority=True)))


@pytest.mark.parametrize(
    ("correct", "limit", "outcome"),
    [
        (98, Limit(metric="m", minimum=0.98), "pass"),
        (97, Limit(metric="m", minimum=0.98), "fail"),
        (5, Limit(metric="m", maximum=0.05), "pass"),
        (6, Limit(metric="m", maximum=0.05), "fail"),
        (50, Limit(metric="m", minimum=0.1, maximum=0.5), "pass"),
        (0, Limit(metric="m", minimum=0.1, maximum=0.5), "fail"),
    ],
)
def test_a_limit_holds_at_its_edge(correct: int, limit: Limit, outcome: str) -> None:
    [finding] = limits(RULES.model_copy(update={"limits": (limit,)}), {"m": share(correct, 100)})
    assert (finding.name, finding.outcome, finding.n) == ("m", outcome, 100)


@pytest.mark.parametrize("metrics", [{}, {"m": share(0, 0)}])
def test_a_share_that_was_not_measured_is_an_objection(metrics: dict[str, Score]) -> None:
    [finding] = limits(RULES.model_copy(update={"limits": (Limit(metric="m", maximum=1.0),)}), metrics)
    assert finding.outcome == "fail"
    assert "no answer was counted for it; mend the limit or the pack" in finding.reason


def test_a_share_that_is_no_number_is_an_objection() -> None:
    broken = Score(correct=float("nan"), n=200, low=0, high=1)
    decision = decide(RULES, asked("candidate", PACK, valid=broken), asked("base", PACK), None, "base")
    assert decision.outcome == "fail"
    assert f"{VALID}.correct of the candidate is nan; evaluate it again" in reasons(decision)
