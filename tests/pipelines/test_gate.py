"""The gate passes only what it is sure of, and says why not otherwise."""

from __future__ import annotations

import json
import math
import uuid

import pytest

from pipelines.answers import ANSWERS, EARLIER_ANSWERS, read_answers, write_answers
from pipelines.artifacts import GateDecision
from pipelines.config_gate import Gate, Requirement
from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport, Scenario
from pipelines.gate import decide, gate, judge
from pipelines.judgement.side import Answers, Side
from pipelines.registry import Registry, register
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, EXPORT, GATE, REGISTER
from tests.pipelines import finished_run
from tests.pipelines.judgement.sides import GOOD, POOR, answers, evaluation, outcomes, reasons, report, side

RULES = Gate(
    requirements=(
        Requirement(slice="new", margin=0.02, minimum=0.8),
        Requirement(slice="old", margin=0.05),
    )
)


def against(candidate: Answers, reference: Answers, rules: Gate = RULES) -> GateDecision:
    return decide(rules, side(candidate), side(reference, "champion v1"), None, "champion v1")


def test_a_better_candidate_passes_with_its_figures() -> None:
    decision = against(answers(GOOD), answers(POOR))
    assert decision.proceed
    assert decision.reference == "champion v1"
    assert "580 of 600 right (96.7%), +46.7 points against champion v1" in reasons(decision)


def test_an_equal_candidate_passes() -> None:
    assert against(answers(GOOD), answers(GOOD)).outcome == "pass"


def test_a_worse_candidate_fails() -> None:
    decision = against(answers("1" * 520 + "0" * 80), answers(GOOD))
    assert decision.outcome == "fail"
    assert "surely a loss beyond 2 points" in reasons(decision)


def test_forgetting_another_slice_fails_although_the_new_one_is_better() -> None:
    decision = against(answers(GOOD, old="0" * 200), answers(POOR, old="1" * 200))
    assert decision.outcome == "fail"
    assert outcomes(decision) == {"new": "pass", "old": "fail", "empty": "pass", "cut": "pass"}


def test_equal_in_the_mean_but_broken_in_one_class_is_refused_for_that_class() -> None:
    decision = against(answers("1" * 600, old="0" * 60 + "1" * 140), answers("1" * 540 + "0" * 60, old="1" * 200))
    assert decision.outcome == "fail"
    assert outcomes(decision)["old"] == "fail"


def test_too_few_items_are_inconclusive_and_do_not_proceed() -> None:
    decision = against(answers("1" * 30, old="1" * 30), answers("1" * 30, old="1" * 30))
    assert (decision.outcome, decision.proceed) == ("inconclusive", False)
    assert outcomes(decision) == {"new": "inconclusive", "old": "inconclusive", "empty": "pass", "cut": "pass"}
    assert decision.findings[0].items_needed == 133


def test_one_failure_outweighs_what_is_undecided() -> None:
    decision = against(answers("1" * 30, old="0" * 30), answers("1" * 30, old="1" * 30))
    assert outcomes(decision)["new"] == "inconclusive"
    assert decision.outcome == "fail"


def test_a_score_below_the_minimum_fails_even_if_the_reference_was_worse() -> None:
    decision = against(answers("1" * 470 + "0" * 130), answers(POOR))
    assert "below the minimum 80.0%" in reasons(decision)
    assert decision.outcome == "fail"


def test_a_ruined_model_is_caught_by_its_silence() -> None:
    silent = {
        item: answer if int(item.split("-")[1]) > 9 else answer.model_copy(update={"text": " \n"})
        for item, answer in answers(GOOD).items()
    }
    decision = against(silent, silent)
    assert outcomes(decision) == {"new": "pass", "old": "pass", "empty": "fail", "cut": "pass"}
    assert "20 of 800 answers are empty (2.5%); gate.max_empty allows 1.0%" in reasons(decision)


def test_the_cost_of_quantization_has_its_own_limit() -> None:
    merged = side(answers(GOOD), "merged bf16")
    decision = decide(RULES, side(answers("1" * 540 + "0" * 60)), side(answers(POOR), "base"), merged, "base")
    assert outcomes(decision)["quantization"] == "fail"


def test_quantization_is_compared_on_the_same_items() -> None:
    merged = answers(GOOD)
    del merged["old-3"]
    decision = decide(RULES, side(answers(GOOD)), side(answers(POOR), "base"), side(merged, "merged bf16"), "base")
    assert decision.outcome == "fail"
    assert "merged bf16 model answered other items" in reasons(decision)


def test_a_slower_candidate_is_refused_where_the_config_asks() -> None:
    slow, champion = evaluation(latency_p99_ms=150), side(answers(GOOD), "champion v1")
    rules = RULES.model_copy(update={"max_latency_ratio": 1.2})
    decision = decide(rules, side(answers(GOOD), measured=slow), champion, None, "champion v1")
    assert [name for name, outcome in outcomes(decision).items() if outcome == "fail"] == ["latency"]
    assert decision.outcome == "fail"


@pytest.mark.parametrize("missing", ["candidate", "reference"])
def test_an_unmeasured_model_is_an_objection(missing: str) -> None:
    both: dict[str, Side | None] = {"candidate": side(answers(GOOD)), "reference": side(answers(GOOD))}
    both[missing] = None
    decision = decide(RULES, both["candidate"], both["reference"], None, "base")
    assert decision.outcome == "fail"
    assert f"the {missing} was not measured" in reasons(decision)


def test_a_missing_answer_is_an_objection() -> None:
    candidate = answers(GOOD)
    del candidate["new-0"]
    decision = against(candidate, answers(GOOD))
    assert decision.outcome == "fail"
    assert "1 items were answered by only one of the two, such as new-0" in reasons(decision)


def test_a_missing_slice_is_an_objection() -> None:
    decision = against(answers(GOOD, old=""), answers(GOOD, old=""))
    assert decision.outcome == "fail"
    assert "slice old was not measured" in reasons(decision)


def test_a_slice_without_a_requirement_is_an_objection() -> None:
    rules = Gate(requirements=(Requirement(slice="new", margin=0.02),))
    decision = against(answers(GOOD), answers(GOOD), rules)
    assert "slice old has no requirement" in reasons(decision)
    assert decision.outcome == "fail"


@pytest.mark.parametrize("whose", ["candidate", "champion v1"])
def test_an_unfinished_answer_is_an_objection(whose: str) -> None:
    aborted, whole = answers(GOOD, finish_reason="abort"), answers(GOOD)
    decision = against(*((aborted, whole) if whose == "candidate" else (whole, aborted)))
    assert decision.outcome == "fail"
    assert f"800 answers of the {whose} did not finish, such as new-0" in reasons(decision)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"test_digest": "x" * 64},
            "champion v1 answered other questions (test split xxxxxxxxxxxx, here tttttttttttt)",
        ),
        ({"prompt_digest": "x" * 64}, "champion v1 was asked with another prompt or other pixel limits (xxxxxxxxxxxx"),
    ],
)
def test_reports_of_other_questions_are_not_compared(changed: dict[str, object], why: str) -> None:
    champion = side(answers(GOOD), "champion v1", **changed)
    decision = decide(RULES, side(answers(GOOD)), champion, None, "champion v1")
    assert decision.outcome == "fail"
    assert why in reasons(decision)


@pytest.mark.parametrize("field", ["latency_p99_ms", "peak_gib", "requests_per_minute"])
def test_a_figure_that_is_no_number_is_an_objection(field: str) -> None:
    measured = evaluation(**{field: math.nan})
    decision = decide(RULES, side(answers(GOOD), measured=measured), side(answers(GOOD), "base"), None, "base")
    assert decision.outcome == "fail"
    assert f"{field} of the candidate is nan" in reasons(decision)


def test_every_objection_is_reported_at_once() -> None:
    champion = side(answers(GOOD, finish_reason="error"), "champion v1", test_digest="x" * 64)
    decision = decide(RULES, side(answers(GOOD, old="")), champion, None, "champion v1")
    assert len(decision.findings) == 4


@pytest.fixture
def model() -> str:
    return f"m-{uuid.uuid4().hex[:8]}"


def judged(run: Run) -> GateDecision:
    run.folder(GATE).mkdir(exist_ok=True)
    decision = gate(run.config, run.folder(GATE), run.read(EVALUATE))
    run.write(GATE, decision, seconds=1, peak_gib=1)
    return decision


def put_into_service(run: Run, settings: Settings) -> int:
    run.folder(REGISTER).mkdir(exist_ok=True)
    version = register(run.config, run.folder(REGISTER), run.read(EXPORT), run.read(EVALUATE), run.read(GATE)).version
    Registry(settings, run.config.registry.model).confirm(version)
    return version


def test_without_a_champion_the_base_is_the_reference_and_then_the_champion_is(tracked: Settings, model: str) -> None:
    first = finished_run.evaluated_run(tracked, "first", model)
    decision = judged(first)
    assert (decision.outcome, decision.reference) == ("pass", "base")
    version = put_into_service(first, tracked)
    second = judged(finished_run.evaluated_run(tracked, "second", model, wrong=60))
    assert (second.outcome, second.reference) == ("fail", f"champion v{version}")
    [noted] = (tracked.home / "sealed").glob("*.jsonl")
    assert [json.loads(line)["outcome"] for line in noted.read_text().splitlines()] == ["pass", "fail"]


def test_a_champions_report_of_other_items_is_refused_with_the_reason(tracked: Settings, model: str) -> None:
    first = finished_run.evaluated_run(tracked, "first", model)
    judged(first)
    put_into_service(first, tracked)
    other = finished_run.evaluated_run(tracked, "other", model)
    report = other.read(EVALUATE).model_copy(update={"test_digest": "u" * 64})
    decision = gate(other.config, other.folder(EVALUATE), report)
    assert decision.outcome == "fail"
    assert "champion v1 answered other questions" in reasons(decision)


def with_another_pack(run: Run, tracked: Settings, wrong: int | None = None) -> EvalReport:
    """A report of more than the champion was registered with.

    Args:
        wrong: Digits that the champion answered wrong beside the candidate; None: it was not asked.
    """
    report = run.read(EVALUATE)
    champion = Registry(tracked, run.config.registry.model).by_alias("champion")
    assert champion is not None
    asked = () if wrong is None else (finished_run.evaluation(run.folder(EVALUATE), "champion", wrong),)
    named = tuple(each.model_copy(update={"model_digest": champion.digest}) for each in asked)
    scenario = Scenario(name="shop", digest="s" * 64, requirements=())
    changes = {"test_digest": "u" * 64, "scenarios": (scenario,), "evaluations": (*report.evaluations, *named)}
    report = report.model_copy(update=changes)
    output = run.folder(EVALUATE) / "output.json"
    output.write_text(json.dumps(json.loads(output.read_text()) | {"artifact": report.model_dump(mode="json")}))
    return report


@pytest.mark.parametrize(("wrong", "outcome"), [(30, "pass"), (5, "fail")])
def test_a_champion_that_was_asked_beside_the_candidate_is_the_reference(
    tracked: Settings, model: str, wrong: int, outcome: str
) -> None:
    """However it answered other questions when it was registered."""
    first = finished_run.evaluated_run(tracked, "first", model)
    judged(first)
    version = put_into_service(first, tracked)
    second = finished_run.evaluated_run(tracked, "second", model)
    with_another_pack(second, tracked, wrong)
    decision = judged(second)
    assert (decision.outcome, decision.reference) == (outcome, f"champion v{version}")
    assert f"against champion v{version}" in reasons(decision)


def test_the_next_champion_is_compared_with_what_it_was_registered_with(tracked: Settings, model: str) -> None:
    """And not with the answers of the champion before it, which lie in its report."""
    first = finished_run.evaluated_run(tracked, "first", model)
    judged(first)
    put_into_service(first, tracked)
    second = finished_run.evaluated_run(tracked, "second", model, wrong=10)
    with_another_pack(second, tracked, 30)
    judged(second)
    put_into_service(second, tracked)
    third = finished_run.evaluated_run(tracked, "third", model, wrong=30)
    with_another_pack(third, tracked)
    decision = judged(third)
    assert (decision.outcome, outcomes(decision)["digits"]) == ("fail", "fail")


def test_another_models_answers_are_not_taken_for_the_champions(tracked: Settings, model: str) -> None:
    """One that was promoted after the evaluation."""
    first = finished_run.evaluated_run(tracked, "first", model)
    judged(first)
    put_into_service(first, tracked)
    second = finished_run.evaluated_run(tracked, "second", model)
    report = with_another_pack(second, tracked, 30)
    stale = report.evaluations[-1].model_copy(update={"model_digest": "9" * 64})
    changed = report.model_copy(update={"evaluations": (*report.evaluations[:-1], stale)})
    decision = gate(second.config, second.folder(EVALUATE), changed)
    assert decision.outcome == "fail"
    output = second.folder(EVALUATE) / "output.json"
    assert (
        f"champion v1 was not asked scenario shop; to evaluate again, clear the task evaluate, or delete {output}"
        in (reasons(decision))
    )


def test_the_gate_says_why_the_champion_was_not_asked(tracked: Settings, model: str) -> None:
    first = finished_run.evaluated_run(tracked, "first", model)
    judged(first)
    put_into_service(first, tracked)
    second = finished_run.evaluated_run(tracked, "second", model)
    report = with_another_pack(second, tracked).model_copy(update={"champion_unmeasured": "its files are gone"})
    decision = gate(second.config, second.folder(EVALUATE), report)
    assert decision.outcome == "fail"
    assert "champion v1 was not asked scenario shop; its files are gone; to evaluate again," in reasons(decision)


def test_a_champion_of_an_earlier_version_is_still_compared_with(tracked: Settings, model: str) -> None:
    """Its answers lie in MLflow as JSONL."""
    first = finished_run.evaluated_run(tracked, "first", model)
    for file in first.folder(EVALUATE).glob(f"*/{ANSWERS}"):
        lines = [answer.model_dump_json(exclude_defaults=True) for answer in read_answers(file).values()]
        file.with_name(EARLIER_ANSWERS).write_text("\n".join(lines))
        file.unlink()
    output = first.folder(EVALUATE) / "output.json"
    output.write_text(output.read_text().replace(ANSWERS, EARLIER_ANSWERS))
    judged(first)
    version = put_into_service(first, tracked)
    decision = judged(finished_run.evaluated_run(tracked, "second", model))
    assert (decision.outcome, decision.reference) == ("pass", f"champion v{version}")


def test_a_candidate_beyond_the_quota_is_not_looked_at(settings: Settings) -> None:
    run = finished_run.evaluated_run(settings, "one", "unused")
    report, rules = run.read(EVALUATE), run.config.gate.model_copy(update={"attempts": 1})

    def look(digest: str) -> GateDecision:
        named = tuple(e.model_copy(update={"model_digest": digest}) for e in report.evaluations)
        other = report.model_copy(update={"evaluations": named})
        base = side(read_answers(report.evaluations[0].answers), "base", report.evaluations[0], test_digest="t" * 64)
        return judge(rules, other, base, "base", run="one", sealed=settings.sealed)

    assert look("a" * 64).outcome == "pass"
    assert look("a" * 64).outcome == "pass"
    with pytest.raises(BadInput, match=r"1 candidates were judged .* gate\.attempts is 1 .* new test items, or raise"):
        look("b" * 64)
    assert len((settings.sealed / f"{'t' * 64}.jsonl").read_text().splitlines()) == 2


def test_another_choice_of_scenarios_is_no_new_test_split(settings: Settings) -> None:
    rules = RULES.model_copy(update={"attempts": 1})

    def look(digest: str, *packs: str) -> GateDecision:
        scenarios = [{"name": pack, "digest": pack, "requirements": []} for pack in packs]
        facts = {"test_digest": "+".join(("data", *packs)), "data_digest": "data", "scenarios": scenarios}
        base, ours = evaluation("base"), evaluation(model_digest=digest, answers=settings.home / ANSWERS)
        reference = side(answers(GOOD), "base", base, **facts)
        return judge(rules, report(base, ours, **facts), reference, "base", run="one", sealed=settings.sealed)

    settings.home.mkdir(parents=True)
    write_answers(settings.home / ANSWERS, list(answers(GOOD).values()))
    assert look("a", "shop").outcome == "pass"
    assert look("a").outcome == "pass"
    with pytest.raises(BadInput, match="candidates were judged on this test split"):
        look("b")
    with pytest.raises(BadInput, match="candidates were judged on this test split"):
        look("b", "clinic")
    (settings.sealed / "data.jsonl").unlink()
    with pytest.raises(BadInput, match="candidates were judged on scenario shop"):
        look("b", "shop")


def test_what_cannot_be_compared_uses_up_nothing(settings: Settings) -> None:
    run = finished_run.evaluated_run(settings, "one", "unused")
    report = run.read(EVALUATE)
    other = side(read_answers(report.evaluations[0].answers), "base", report.evaluations[0], test_digest="u" * 64)
    decision = judge(run.config.gate, report, other, "base", run="one", sealed=settings.sealed)
    assert "base answered other questions" in reasons(decision)
    assert not settings.sealed.exists()


def test_what_was_not_measured_uses_up_nothing(settings: Settings) -> None:
    run = finished_run.evaluated_run(settings, "one", "unused")
    decision = judge(run.config.gate, run.read(EVALUATE), None, "base", run="one", sealed=settings.sealed)
    assert decision.outcome == "fail"
    assert not settings.sealed.exists()
