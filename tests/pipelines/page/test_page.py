"""The page says what was decided and why, whatever the outcome, and shows untrusted text as text."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from pipelines.artifacts import GateDecision
from pipelines.judgement.side import read_side
from pipelines.page.sides import columns
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, EXPORT, FINETUNE, PREPARE
from tests.pipelines.finished_run import evaluation
from tests.pipelines.page.judged_run import Judged, answer_otherwise, decision, judged

PICTURES = {"difference.png", "quality.png", "loss.png", "memory.png", "latency.png"}


def text_of(page: Path) -> str:
    """What a person reads: tags and style taken away."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def again(found: Judged) -> Judged:
    """The same run, judged on the answers as they are now."""
    reference = found.reference
    if reference is not None:
        reference = read_side(reference.report, reference.evaluation.subject, reference.name)
    return Judged(found.run, found.report, reference, decision(found.run, found.report, reference))


def test_a_pass_comes_first_with_its_reason(settings: Settings) -> None:
    found = judged(settings)
    text = text_of(found.page())
    assert found.decision.outcome == "pass"
    assert text.index("✓ Pass judged against base It may replace base") < text.index("Quality by slice")
    assert "95.0 % 93.0 to 96.5" in text.replace("\u202f", " ")
    assert "Broken: 0" in text
    assert "24 of 350 are shown" in text


def test_a_refusal_names_what_failed_before_what_holds(settings: Settings) -> None:
    judged(settings, "champion", wrong=10)
    found = judged(settings, wrong=200, champion="champion")
    text = text_of(found.page())
    assert found.decision.outcome == "fail"
    assert "It may not replace champion v1: digits fell short of what the config asks for." in text
    assert text.index("digits ✕ fail") < text.index("requirements hold")
    assert "Broken: 190" in text
    assert "champion v1" in text[text.index("Right answers with 95 % intervals") :]


def test_its_pictures_lie_beside_it(settings: Settings) -> None:
    page = judged(settings).page()
    pictures = {path.name: path for path in page.parent.glob("*.png")}
    assert pictures.keys() == PICTURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())


def test_changed_answers_are_shown_with_their_images_and_the_broken_first(settings: Settings) -> None:
    found = judged(settings)
    answer_otherwise(found.run, "candidate", {"shapes-3": "a bent line"})
    text = (page := again(found).page()).read_text()
    assert text.index("shapes · shapes-3") < text.index("digits · digits-30")
    assert "Which digit is this?" in text
    assert 'src="data:image/png;base64,' in text
    assert "Broken: 1" in text_of(page)


def test_untrusted_text_stays_text(settings: Settings) -> None:
    found = judged(settings)
    hostile = "</dd><script>alert(1)</script><img src=x onerror=alert(2)>"
    answer_otherwise(found.run, "candidate", {"shapes-3": hostile})
    page = again(found).page()
    assert "<script" not in page.read_text()
    assert "<img src=x" not in page.read_text()
    assert hostile in html.unescape(page.read_text())


@pytest.mark.parametrize("words", ["الجواب سبعة", "答案是七 🙂", "\u202eabc", "$\\alpha$ {{ 7 * 7 }}"], ids=ascii)
def test_any_writing_is_shown_as_it_is(settings: Settings, words: str) -> None:
    found = judged(settings)
    answer_otherwise(found.run, "candidate", {"shapes-3": words})
    assert f'<span class="text" dir="auto">{html.escape(words)}</span>' in again(found).page().read_text()


def test_a_very_long_answer_is_folded_and_its_cut_said(settings: Settings) -> None:
    found = judged(settings)
    answer_otherwise(found.run, "candidate", {"shapes-3": "seven " * 20_000})
    page = again(found).page()
    assert page.stat().st_size < 1_000_000
    assert "The first 4000 of 120000 characters" in text_of(page)


def test_nothing_changed_is_said(settings: Settings) -> None:
    judged(settings, "champion")
    text = text_of(judged(settings, champion="champion").page())
    assert "0 got worse than champion v1\u2019s and 0 got better" in text
    assert "Broken: 0 None." in text


def test_a_reference_that_was_not_measured_is_said(settings: Settings) -> None:
    found = judged(settings)
    refused = decision(found.run, found.report, None)
    text = text_of(Judged(found.run, found.report, None, refused).page())
    assert "It cannot be compared with base: the reference was not measured; evaluate it." in text
    assert "There is nothing to compare the answers with." in text


def test_a_champion_that_answered_other_questions_is_in_no_table(settings: Settings) -> None:
    found = judged(settings, "champion")
    output = found.run.folder(EVALUATE) / "output.json"
    output.write_text(output.read_text().replace("t" * 64, "x" * 64))
    found = judged(settings, champion="champion")
    text = text_of(found.page())
    assert "It cannot be compared with champion v1: champion v1 answered other questions" in text
    assert "difference outcome" in text
    assert "merged bf16 champion v1 candidate" not in text


@pytest.mark.parametrize(("reference", "paints"), [("base", ""), ("champion", "champion ")])
def test_a_champion_that_was_asked_beside_the_candidate_is_a_column(
    settings: Settings, reference: str, paints: str
) -> None:
    run = judged(settings).run
    report = run.read(EVALUATE)
    asked = (*report.evaluations, evaluation(run.folder(EVALUATE), "champion", 30))
    report = report.model_copy(update={"evaluations": asked})
    found = columns(report, read_side(report, reference, "it"))
    assert " ".join(column.paint for column in found) == f"base merged {paints}candidate"


def test_it_needs_no_merged_model(settings: Settings) -> None:
    found = judged(settings)
    kept = tuple(each for each in found.report.evaluations if each.subject != "merged")
    report = found.report.model_copy(update={"evaluations": kept})
    page = Judged(found.run, report, found.reference, decision(found.run, report, found.reference)).page()
    assert "merged" not in text_of(page)[: text_of(page).index("The whole config")]


def test_steps_and_images_that_are_gone_leave_the_rest(settings: Settings) -> None:
    found = judged(settings)
    (found.run.folder(FINETUNE) / "output.json").unlink()
    exported = found.run.folder(EXPORT) / "output.json"
    exported.write_text(exported.read_text().replace('"scheme"', '"of_another_version"'))
    (found.run.folder(PREPARE) / "data" / "images" / "one.png").unlink()
    text = text_of(found.page())
    assert "This run has no training to show." in text
    assert "image is gone" in text
    (found.run.folder(PREPARE) / "data" / "test.jsonl").unlink()
    assert "digits · digits-30" in text_of(found.page())


def test_a_damaged_picture_and_a_cut_history_leave_the_rest(settings: Settings) -> None:
    found = judged(settings)
    picture = found.run.folder(PREPARE) / "data" / "images" / "one.png"
    picture.write_bytes(picture.read_bytes()[:40])
    history = found.run.folder(FINETUNE) / "history.jsonl"
    history.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    text = (page := found.page()).read_text()
    assert "image is gone or damaged" in text
    assert "Loss over 10 steps" in text
    assert (page.parent / "loss.png").is_file()


def test_a_page_that_fails_leaves_none_of_an_earlier_decision(settings: Settings) -> None:
    found = judged(settings)
    page = found.page()
    (page.parent / "loss.png").unlink()
    (page.parent / "loss.png").mkdir()
    with pytest.raises(OSError, match=r"loss\.png"):
        found.page()
    assert not page.exists()


def test_an_inconclusive_decision_says_what_would_decide(settings: Settings) -> None:
    found = judged(settings)
    undecided = found.decision.findings[0].model_copy(update={"outcome": "inconclusive", "items_needed": 12_345})
    open_decision = GateDecision(outcome="inconclusive", reference="base", findings=(undecided,))
    text = text_of(Judged(found.run, found.report, found.reference, open_decision).page())
    assert "It may not replace base yet: the items do not decide digits; about 12 345 would." in text.replace(
        "\u202f", " "
    )


def test_lineage_names_every_digest(settings: Settings) -> None:
    found = judged(settings)
    text = text_of(found.page())
    for digest in ("b", "d", "a", "e", "t", "p", "c"):
        assert digest * 64 in text
    assert "builtin://tiny" in text
    assert json.dumps(found.run.config.registry.model) in text


def test_a_number_that_is_none_is_shown_and_breaks_nothing(settings: Settings) -> None:
    found = judged(settings)
    *others, candidate = found.report.evaluations
    broken = candidate.model_copy(update={"latency_p99_ms": float("nan")})
    report = found.report.model_copy(update={"evaluations": (*others, broken)})
    page = Judged(found.run, report, found.reference, decision(found.run, report, found.reference)).page()
    assert "nan ms" in text_of(page)
